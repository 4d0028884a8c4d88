//! VMDESC against two real streams (how they were made: docs/wire/vmstate.md §9 and
//! `data/README.md`), against its own rules, and against JSON that lies.

#![expect(clippy::unwrap_used, reason = "what only tests call may fail as a test")]

use mig_proto::vmdesc::{
    DeviceDescription, DeviceLayout, FieldTree, FieldValue, Located, MAX_JSON_LEN, MAX_NESTING,
    MAX_VALUES, VmDescription, VmdescError, decode_fields, locate, payload_len,
};
use proptest::prelude::*;

const STREAMS: [(&str, &[u8]); 2] = [
    ("q35", include_bytes!("data/q35-10.0.2-precopy.bin.zst")),
    ("pc", include_bytes!("data/pc-10.0.2-precopy.bin.zst")),
];

fn unpack(compressed: &[u8]) -> Vec<u8> {
    zstd::decode_all(compressed).unwrap()
}

fn located(stream: &[u8]) -> (usize, &[u8]) {
    match locate(stream, stream.len() as u64) {
        Located::Found { item_at, json_at, json_len } => {
            assert_eq!(item_at + 5, json_at);
            assert_eq!(json_at + u64::from(json_len), stream.len() as u64);
            (usize::try_from(item_at).unwrap(), &stream[usize::try_from(json_at).unwrap()..])
        }
        other => panic!("{other:?}"),
    }
}

/// `04 | be32 id | str8 idstr | be32 instance | be32 version`: the header's bytes without type and
/// id, as a description says they are.
fn header_tail(device: &DeviceDescription) -> Vec<u8> {
    let version = match &device.layout {
        DeviceLayout::Fields(description) => description.version,
        DeviceLayout::Opaque { .. } => panic!("no legacy handlers in these streams"),
    };
    let mut out = vec![u8::try_from(device.name.len()).unwrap()];
    out.extend_from_slice(device.name.as_bytes());
    out.extend_from_slice(&device.instance_id.to_be_bytes());
    out.extend_from_slice(&version.to_be_bytes());
    out
}

/// The FULL sections of a stream with their payloads. From the first header on, each section must
/// begin where the one before ended, and the last one must end at the EOF.
fn full_sections(stream: &[u8]) -> Vec<(DeviceDescription, Vec<u8>)> {
    let (item_at, json) = located(stream);
    let description = VmDescription::parse(json).unwrap();
    let first = header_tail(&description.devices[0]);
    let mut at = stream.windows(first.len()).position(|window| window == first).unwrap() - 5;
    let mut sections = Vec::new();
    for device in description.devices {
        let header = header_tail(&device);
        assert_eq!(stream[at], 4, "{}", device.name);
        let id = &stream[at + 1..at + 5];
        assert_eq!(&stream[at + 5..][..header.len()], header, "{}", device.name);
        let payload_at = at + 5 + header.len();
        let len = usize::try_from(payload_len(&device).unwrap()).unwrap();
        let footer = &stream[payload_at + len..][..5];
        assert_eq!((footer[0], &footer[1..]), (0x7e, id), "{}", device.name);
        sections.push((device, stream[payload_at..payload_at + len].to_vec()));
        at = payload_at + len + 5;
    }
    assert_eq!(stream[at], 0, "EOF");
    assert_eq!(at + 1, item_at);
    sections
}

fn tree_of(machine: &str, name: &str) -> FieldTree {
    let (_, compressed) = STREAMS.into_iter().find(|(stream, _)| *stream == machine).unwrap();
    let sections = full_sections(&unpack(compressed));
    let (device, payload) =
        sections.into_iter().find(|(device, _)| device.name == name).expect("a device");
    decode_fields(&device, &payload).unwrap()
}

#[test]
fn every_section_of_the_real_streams_ends_on_its_footer() {
    let counts = STREAMS.map(|(_, compressed)| full_sections(&unpack(compressed)).len());
    assert_eq!(counts, [29, 30]);
}

#[test]
fn every_section_of_the_real_streams_decodes_and_shows() {
    for (_, compressed) in STREAMS {
        for (device, payload) in full_sections(&unpack(compressed)) {
            let tree = decode_fields(&device, &payload).unwrap();
            let json = serde_json::to_value(&tree).unwrap();
            let shown = json.as_object().unwrap().len();
            assert_eq!(shown, tree.fields.len() + usize::from(!tree.subsections.is_empty()));
        }
    }
}

#[test]
fn the_root_is_read() {
    let stream = unpack(STREAMS[0].1);
    let description = VmDescription::parse(located(&stream).1).unwrap();
    assert_eq!(description.page_size, Some(4096));
    assert_eq!(description.configuration.unwrap().vmsd_name, "configuration");
    let timer = description.devices.iter().find(|device| device.name == "timer").unwrap();
    assert_eq!(timer.instance_id, 0);
    assert_eq!(payload_len(timer).unwrap(), 24);
}

/// docs/wire/vmstate.md §9.3 and §9.4 tell what is in these; the values of a subsection are one
/// level down.
#[test]
fn known_devices_have_their_known_values() {
    let tree = tree_of("q35", "fw_cfg");
    let acpi = &tree.subsection("fw_cfg/acpi_mr").unwrap().fields.fields;
    let acpi: Vec<_> = acpi.iter().map(|(_, value)| value.clone()).collect();
    assert_eq!(acpi, [0x20000, 0x1000, 0x14].map(FieldValue::Unsigned));
    let fw_cfg = serde_json::to_value(&tree).unwrap();
    assert_eq!(fw_cfg["cur_entry"], 0);
    assert_eq!(fw_cfg["cur_offset[1]"], 0);
    assert_eq!(fw_cfg["subsections"]["fw_cfg/dma"]["version"], 0);
    assert_eq!(fw_cfg["subsections"]["fw_cfg/dma"]["fields"]["dma_addr"], 0);

    let bus = tree_of("q35", "PCIBUS");
    assert_eq!(bus.field("nirq"), Some(&FieldValue::Signed(8)));
    assert_eq!(bus.field("irq_count"), Some(&FieldValue::Array(vec![FieldValue::Signed(0); 8])));

    let cpu = tree_of("q35", "cpu");
    assert!(cpu.subsection("cpu/tsc_khz").is_some());
    match cpu.field("env.fpregs") {
        Some(FieldValue::Array(registers)) => assert_eq!(registers.len(), 8),
        other => panic!("{other:?}"),
    }
}

/// ahci's `dev` has six elements, of which QEMU 10.0 indexes five.
#[test]
fn an_array_whose_last_index_is_missing_is_one_array() {
    let ahci = tree_of("q35", "0000:00:1f.2/ich9_ahci");
    let json = serde_json::to_value(&ahci).unwrap();
    let arrays: Vec<_> = json["ahci"]["dev"].as_array().unwrap().iter().collect();
    assert_eq!(arrays.len(), 6);
    assert!(arrays.iter().all(|element| element.is_object()));
}

// ---- locate ----

#[test]
fn the_description_is_found_from_the_tail() {
    let stream = unpack(STREAMS[0].1);
    let whole = locate(&stream, stream.len() as u64);
    let (_, json) = located(&stream);
    let needed = json.len() + 6;
    for len in [needed, needed + 1, stream.len() - 1] {
        assert_eq!(locate(&stream[stream.len() - len..], stream.len() as u64), whole);
    }
    for len in [0, 1, json.len(), needed - 1] {
        let tail = &stream[stream.len() - len..];
        assert_eq!(locate(tail, stream.len() as u64), Located::NotInTail);
    }
    assert_eq!(locate(&stream[..1000], 1000), Located::Absent);
    assert_eq!(locate(&[], 0), Located::Absent);
    // Cut by one byte the length does not fit any more.
    let cut = &stream[..stream.len() - 1];
    assert_eq!(locate(cut, cut.len() as u64), Located::Absent);
}

// ---- parse ----

fn device(members: &str) -> DeviceDescription {
    let json = format!(r#"{{"devices": [{{"name": "d", "instance_id": 0, {members}}}]}}"#);
    VmDescription::parse(json.as_bytes()).unwrap().devices.remove(0)
}

fn fields(fields: &str) -> DeviceDescription {
    device(&format!(r#""vmsd_name": "d", "version": 1, "fields": [{fields}]"#))
}

#[test]
fn duplicate_keys_are_tolerated_and_the_last_wins() {
    let list = r#"{"name": "l", "type": "qtailq",
        "vmsd_name": "a", "version": 1, "fields": [{"name": "x", "type": "uint8", "size": 1}],
        "vmsd_name": "b", "version": 1, "fields": [{"name": "x", "type": "uint8", "size": 1}],
        "size": 4, "size": 5}"#;
    let device = fields(list);
    assert_eq!(payload_len(&device).unwrap(), 5);
    let json = serde_json::to_string(&decode_fields(&device, &[1, 7, 1, 8, 0]).unwrap()).unwrap();
    assert_eq!(json, r#"{"l":{"type":"qtailq","size":5,"hex":"0107010800"}}"#);
}

#[test]
fn an_opaque_device_is_its_size() {
    let device = device(
        r#""size": 3, "fields": [{"name": "data", "size": 3, "type": "buffer"}], "new": [{}]"#,
    );
    assert_eq!(device.layout, DeviceLayout::Opaque { size: 3 });
    assert_eq!(payload_len(&device).unwrap(), 3);
    let tree = decode_fields(&device, b"abc").unwrap();
    assert_eq!(
        serde_json::to_string(&tree).unwrap(),
        r#"{"data":{"type":"buffer","size":3,"hex":"616263"}}"#
    );
}

#[test]
fn every_kind_of_value_is_shown() {
    let device = fields(
        r#"{"name": "b", "type": "bool", "size": 1},
           {"name": "i", "type": "int16", "size": 2},
           {"name": "t", "type": "timer", "size": 8},
           {"name": "e", "type": "int64 equal", "size": 8},
           {"name": "d", "type": "CPU_Double_U", "size": 8},
           {"name": "a", "array_len": 2, "type": "int8", "size": 1},
           {"name": "buf", "type": "buffer", "size": 2},
           {"name": "p", "array_len": 2, "type": "nullptr", "size": 1},
           {"name": "p", "type": "uint8", "size": 1},
           {"name": "p", "index": 3, "type": "uint8", "size": 1},
           {"name": "v", "type": "vstruct", "vmsd_name": "v", "version": 2, "size": 7,
            "fields": [{"name": "x", "type": "uint8", "size": 1}],
            "subsections": [{"vmsd_name": "", "version": 9, "fields": []}]},
           {"name": "z", "array_len": 9223372036854775808, "type": "virtio", "size": 0}"#,
    );
    let mut payload = vec![2];
    payload.extend_from_slice(&(-2i16).to_be_bytes());
    payload.extend_from_slice(&[0xff; 8]);
    payload.extend_from_slice(&[0xff; 8]);
    payload.extend_from_slice(&1.5f64.to_be_bytes());
    payload.extend_from_slice(&[0xff, 1, 0xab, 0xcd, 0x30, 0x30, 5, 6]);
    payload.extend_from_slice(&[7, 5, 0, 0, 0, 0, 9]);
    let json = serde_json::to_string(&decode_fields(&device, &payload).unwrap()).unwrap();
    assert_eq!(
        json,
        concat!(
            r#"{"b":true,"i":-2,"t":18446744073709551615,"e":18446744073709551615,"d":1.5,"#,
            r#""a":[-1,1],"buf":"abcd","p":[null,null,5,6],"#,
            r#""v":{"x":7,"subsections":{"":{"version":9,"fields":{}}}},"#,
            r#""z":{"type":"virtio","size":0,"hex":""}}"#
        )
    );
}

#[test]
fn long_buffers_and_arrays_are_cut_but_tell_their_length() {
    let device = fields(
        r#"{"name": "a", "array_len": 5000, "type": "uint16", "size": 2},
           {"name": "b", "type": "buffer", "size": 1000}"#,
    );
    let json = serde_json::to_value(decode_fields(&device, &vec![0xaa; 11000]).unwrap()).unwrap();
    assert_eq!((&json["a"]["type"], &json["a"]["size"]), (&"uint16".into(), &10000.into()));
    assert_eq!(json["a"]["hex"].as_str().unwrap().len(), 512);
    assert_eq!((&json["b"]["size"], &json["b"]["type"]), (&1000.into(), &"buffer".into()));
}

// ---- lies ----

#[test]
fn sizes_that_contradict_their_contents_are_refused_with_the_path() {
    let error = payload_len(&fields(r#"{"name": "x", "type": "uint32", "size": 2}"#)).unwrap_err();
    assert_eq!(error.to_string(), "VMDESC d.x: size 2, but its contents take 4");
    for nested in [r#""type": "struct", "struct": {"#, r#""type": "tmp", "#] {
        let close = if nested.contains('{') { "}" } else { "" };
        let lie = fields(&format!(
            r#"{{"name": "s", "size": 9, {nested} "vmsd_name": "n", "version": 1,
                "fields": [{{"name": "x", "type": "uint8", "size": 1}}]{close}}}"#
        ));
        let error = payload_len(&lie).unwrap_err();
        assert_eq!(error.to_string(), "VMDESC d.s: size 9, but its contents take 1");
        assert!(error.peer_is_to_blame());
    }
}

#[test]
fn lengths_that_overflow_are_refused() {
    let huge =
        r#"{"name": "x", "array_len": 9223372036854775808, "type": "pci config", "size": 2}"#;
    let error = payload_len(&fields(huge)).unwrap_err();
    assert!(matches!(error, VmdescError::Overflow { .. }), "{error}");
    let half = r#"{"name": "x", "type": "virtio", "size": 9223372036854775808}"#;
    let error = payload_len(&fields(&format!("{half}, {half}"))).unwrap_err();
    assert!(matches!(error, VmdescError::Overflow { .. }), "{error}");
    let big = fields(half);
    let error = decode_fields(&big, &[0; 8]).unwrap_err();
    assert!(matches!(error, VmdescError::PayloadLength { actual: 8, .. }), "{error}");
}

#[test]
fn a_subsection_that_is_not_there_is_named() {
    let device = device(
        r#""vmsd_name": "d", "version": 1, "fields": [],
           "subsections": [{"vmsd_name": "d/x", "version": 1, "fields": []}]"#,
    );
    assert_eq!(payload_len(&device).unwrap(), 9);
    assert!(decode_fields(&device, b"\x05\x03d/x\0\0\0\x01").is_ok());
    for payload in [b"\x04\x03d/x\0\0\0\x01", b"\x05\x02d/x\0\0\0\x01", b"\x05\x03d/y\0\0\0\x01"] {
        let error = decode_fields(&device, payload).unwrap_err();
        assert_eq!(error.to_string(), "payload byte 0: no header of subsection d.d/x");
        assert_eq!(error.at(), Some(0));
    }
}

#[test]
fn arrays_of_nothing_cost_nothing() {
    let nothing = r#"{"name": "s", "array_len": 9223372036854775808, "type": "struct", "size": 0,
        "struct": {"vmsd_name": "n", "version": 1, "fields": []}}"#;
    assert!(decode_fields(&fields(nothing), &[]).is_ok());
}

#[test]
fn values_are_counted() {
    // 4096 elements of one byte, each with 100 fields of no bytes.
    let empty = vec![r#"{"name": "e", "type": "virtio", "size": 0}"#; 100].join(",");
    let lie = fields(&format!(
        r#"{{"name": "s", "array_len": 4096, "type": "struct", "size": 1, "struct": {{
            "vmsd_name": "n", "version": 1,
            "fields": [{empty}, {{"name": "x", "type": "uint8", "size": 1}}]}}}}"#
    ));
    const { assert!(4096 * 101 > MAX_VALUES) };
    let error = decode_fields(&lie, &[0; 4096]).unwrap_err();
    assert!(matches!(error, VmdescError::TooManyValues { .. }), "{error}");
}

#[test]
fn too_long_too_deep_and_not_json_are_told_apart() {
    let long = vec![b' '; MAX_JSON_LEN + 1];
    assert!(matches!(VmDescription::parse(&long), Err(VmdescError::TooLong { .. })));
    let deep = "[".repeat(1_000_000);
    let error = VmDescription::parse(deep.as_bytes()).unwrap_err();
    assert_eq!(error.at(), Some(MAX_NESTING));
    // Brackets in strings are not nesting.
    let strings = format!(r#"{{"x": "\"{}", "devices": []}}"#, "[".repeat(200));
    assert!(VmDescription::parse(strings.as_bytes()).is_ok());
    let error = VmDescription::parse(b"{\n\"devices\": [}").unwrap_err();
    assert_eq!(error.at(), Some(14), "{error:?}");
    for bad in [
        "",
        "[]",
        "{}",
        "null",
        "{\"devices\": 3}",
        "{\"devices\": [{}]}",
        r#"{"devices": [{"name": "d", "instance_id": 0}]}"#,
        r#"{"devices": [{"name": "d", "instance_id": 4294967296, "size": 1}]}"#,
        r#"{"devices": [{"name": "d", "instance_id": 0, "size": -1}]}"#,
        r#"{"devices": []} x"#,
        r#"{"devices": [{"name": "d", "instance_id": 0, "vmsd_name": "d", "fields": [{"name": "x"}]}]}"#,
    ] {
        let refused = VmDescription::parse(bad.as_bytes());
        assert!(matches!(refused, Err(VmdescError::Json { .. })), "{bad}: {refused:?}");
    }
    let long_name = format!(
        r#"{{"devices": [{{"name": "{}", "instance_id": 0, "size": 1}}]}}"#,
        "x".repeat(256)
    );
    assert!(VmDescription::parse(long_name.as_bytes()).is_err());
}

#[test]
fn instance_ids_may_be_printed_as_signed() {
    let json = br#"{"devices": [{"name": "d", "instance_id": -1, "size": 1}]}"#;
    let description = VmDescription::parse(json).unwrap();
    assert!(description.device(b"d", u32::MAX).is_some());
    assert!(description.device(b"d", 0).is_none());
}

/// Nothing may panic or take long, whatever single change is made to a real description.
#[test]
fn damaged_real_descriptions_are_answered() {
    let stream = unpack(STREAMS[1].1);
    let (_, json) = located(&stream);
    let sections = full_sections(&stream);
    for at in (0..json.len()).step_by(997) {
        for byte in [b'9', b'"', b'}', 0] {
            let mut damaged = json.to_vec();
            damaged[at] = byte;
            let Ok(description) = VmDescription::parse(&damaged) else { continue };
            for (device, (_, payload)) in description.devices.iter().zip(&sections) {
                let _ = decode_fields(device, payload);
            }
        }
    }
}

fn any_field() -> impl Strategy<Value = String> {
    let sizes = prop_oneof![0u64..9, Just(1 << 31), Just(1 << 63), Just(u64::MAX)];
    let types = prop_oneof![
        Just("uint8"),
        Just("int64"),
        Just("struct"),
        Just("tmp"),
        Just("buffer"),
        Just("qtailq"),
        Just("who knows"),
    ];
    let leaf = (types.clone(), sizes.clone(), proptest::option::of(sizes.clone())).prop_map(
        |(kind, size, array)| {
            let array = array.map(|len| format!(r#""array_len": {len},"#)).unwrap_or_default();
            format!(r#"{{"name": "f", {array} "type": "{kind}", "size": {size}}}"#)
        },
    );
    leaf.prop_recursive(4, 24, 4, move |inner| {
        (proptest::collection::vec(inner, 0..4), sizes.clone(), proptest::option::of(0u64..6000))
            .prop_map(|(fields, size, array)| {
                let array = array.map(|len| format!(r#""array_len": {len},"#)).unwrap_or_default();
                let fields = fields.join(",");
                format!(
                    r#"{{"name": "s", {array} "type": "struct", "size": {size}, "struct":
                       {{"vmsd_name": "s", "version": 1, "fields": [{fields}]}}}}"#
                )
            })
    })
}

proptest! {
    #[test]
    fn any_description_of_any_payload_is_answered(
        described in proptest::collection::vec(any_field(), 0..4),
        payload in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let device = fields(&described.join(","));
        let fits = payload_len(&device).is_ok_and(|len| len == payload.len() as u64);
        let decoded = decode_fields(&device, &payload);
        prop_assert!(fits || decoded.is_err());
        // And with a payload of the right length, where there can be one.
        if let Ok(len @ 0..100_000) = payload_len(&device) {
            let payload = vec![0; usize::try_from(len).unwrap()];
            let decoded = decode_fields(&device, &payload);
            let told = matches!(decoded, Ok(_) | Err(VmdescError::TooManyValues { .. }));
            prop_assert!(told, "{decoded:?}");
        }
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = VmDescription::parse(&bytes);
        let _ = locate(&bytes, bytes.len() as u64);
    }
}
