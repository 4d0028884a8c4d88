//! The VMDESCRIPTION of opaque devices (docs/wire/vmstate.md §8): enough for any reader to find their ends.

use serde::Serialize;

use crate::guest::DeviceSection;

#[derive(Serialize)]
struct Root<'a> {
    page_size: u64,
    devices: Vec<Device<'a>>,
}

#[derive(Serialize)]
struct Device<'a> {
    name: &'a str,
    instance_id: u32,
    version: u32,
    size: usize,
    fields: [Field; 1],
}

#[derive(Serialize)]
struct Field {
    name: &'static str,
    size: usize,
    r#type: &'static str,
}

pub(super) fn describe(page_size: u64, sections: &[DeviceSection]) -> Vec<u8> {
    let devices = sections
        .iter()
        .map(|section| Device {
            name: &section.idstr,
            instance_id: section.instance_id,
            version: section.version_id,
            size: section.payload.len(),
            fields: [Field { name: "data", size: section.payload.len(), r#type: "buffer" }],
        })
        .collect();
    serde_json::to_vec(&Root { page_size, devices }).expect("strings and numbers always encode")
}
