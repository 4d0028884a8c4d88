//! What is told about a stream, in the shape that scripts rely on. Keys may be added, never renamed.

use std::collections::BTreeMap;

use mig::{engine::PageCounts, proto::vmdesc::FieldTree};
use serde::Serialize;
use serde_json::Value;

/// The whole object.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) bytes: u64,
    pub(crate) complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<Value>,
    pub(crate) file_header: Option<FileHeader>,
    pub(crate) configuration: Option<Configuration>,
    pub(crate) items: Vec<Item>,
    /// Items beyond the number that is listed.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) items_omitted: u64,
    pub(crate) ram: Ram,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) page_size: Option<u32>,
}

#[derive(Debug, Serialize)]
pub(crate) struct FileHeader {
    pub(crate) version: u32,
}

#[derive(Debug, Serialize)]
pub(crate) struct Configuration {
    pub(crate) offset: u64,
    pub(crate) machine: String,
    pub(crate) capabilities: Vec<String>,
    pub(crate) uuid: Option<String>,
    pub(crate) target_page_bits: Option<u32>,
}

/// One item of the stream, or EOF, or VMDESCRIPTION.
#[derive(Debug, Serialize)]
pub(crate) struct Item {
    pub(crate) kind: &'static str,
    pub(crate) offset: u64,
    /// Bytes, header and footer included.
    pub(crate) size: u64,
    #[serde(flatten)]
    pub(crate) what: What,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) in_package: bool,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum What {
    Section(Section),
    Command(Command),
    Description { length: u32, devices: Option<usize> },
    Nothing {},
}

#[derive(Debug, Serialize)]
pub(crate) struct Section {
    pub(crate) section_id: u32,
    pub(crate) idstr: String,
    pub(crate) instance_id: u32,
    pub(crate) version_id: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) payload_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fields: Option<FieldTree>,
    /// Why there are no fields although VMDESC describes the section.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fields_error: Option<String>,
    /// Records of a `ram` section.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) records: Option<Records>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Records {
    #[serde(flatten)]
    pub(crate) pages: PageCounts,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) hook: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) multifd_flush: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) block_lists: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Command {
    pub(crate) command: &'static str,
    #[serde(flatten)]
    pub(crate) payload: BTreeMap<&'static str, Value>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Ram {
    pub(crate) blocks: Vec<Block>,
    /// Records of the whole stream.
    pub(crate) pages: PageCounts,
}

#[derive(Debug, Serialize)]
pub(crate) struct Block {
    pub(crate) idstr: String,
    pub(crate) used_length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) host_page_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<u64>,
    /// Records about this block.
    pub(crate) pages: PageCounts,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}
