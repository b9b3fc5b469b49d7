//! The segment and its rings, held to golden files: `docs/wire.md`, "Shared memory".
//!
//! The layout is this module's secret, so it is held here; the other formats are held by
//! `tests/tests/golden.rs`. `PRAAS_BLESS=1` rewrites the files, as it does there.

use std::path::Path;
use std::sync::Arc;

use super::ring::{LINE_BYTES, MARKER_KIND, RingReader, RingWriter};
use super::segment::{SegmentLines, Word, segment_create};
use super::socket::{RegionTold, SocketMessage};
use super::{Layout, layout_decode, layout_encode};
use crate::buf::mapping::Mapping;
use crate::one_sided::Access;
use crate::wire::{FrameHeader, FrameKind};

const LAYOUT: Layout = Layout {
    ring_bytes: 256 << 10,
    bulk_bytes: 1 << 20,
};

fn hold(file: &str, bytes: &[u8], fields: &str) {
    hold_in("segment", file, bytes, fields);
}

fn hold_in(folder: &str, file: &str, bytes: &[u8], fields: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let golden = golden.join(folder);
    let path = golden.join(file);
    if std::env::var_os("PRAAS_BLESS").is_some() {
        std::fs::create_dir_all(&golden).unwrap();
        return std::fs::write(path, bytes).unwrap();
    }
    let expected = std::fs::read(&path).unwrap_or_default();
    let same = expected.iter().zip(bytes).take_while(|(a, b)| a == b);
    assert!(
        expected == bytes,
        "tests/golden/{folder}/{file} differs from byte {} on; the fields are {fields}. If that is \
         meant, it is a new version of the layout: change docs/wire.md, \"Shared memory\", and \
         rewrite the files by `just bless`",
        same.count()
    );
}

fn frame(id: u64, payload: &[u8]) -> [u8; 32] {
    let header = FrameHeader::new(FrameKind::Eager)
        .with_message(1, 2)
        .with_id(id)
        .with_len(payload.len() as u64);
    zerocopy::transmute!(header)
}

fn bytes(segment: &Mapping, at: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    segment.read(at, &mut bytes);
    bytes
}

#[test]
fn golden_places_in_the_segment() {
    let mut text = format!("{} bytes\n", LAYOUT.segment_bytes());
    for direction in 0..2 {
        for word in [
            Word::SmallConsumed,
            Word::LargeConsumed,
            Word::BulkTail,
            Word::BulkHead,
            Word::ReaderSleeps,
            Word::WriterSleeps,
            Word::WriterGone,
        ] {
            let at = LAYOUT.word_at(direction, word);
            text.push_str(&format!("{at} {word:?} {direction}\n"));
        }
    }
    for (name, at) in [
        ("small ring", Layout::small_at as fn(Layout, usize) -> usize),
        ("large ring", Layout::large_at),
        ("bulk ring", Layout::bulk_at),
    ] {
        for direction in 0..2 {
            text.push_str(&format!("{} {name} {direction}\n", at(LAYOUT, direction)));
        }
    }
    hold("places", text.as_bytes(), "one a line");
}

#[test]
fn golden_layout_in_accept() {
    let bytes = layout_encode(LAYOUT);
    hold("accept", &bytes, "u64 ring_bytes, u64 bulk_bytes");
    assert_eq!(layout_decode(&bytes), Ok(LAYOUT));
}

#[test]
fn golden_messages_on_the_socket() {
    let told = RegionTold {
        key: 0x1111,
        len: 0x2222,
        slot: 0x33,
        open: 0x4444,
        access: Access::ALL,
        file: 0x55,
        bytes: 0x7777,
        offset: 0x66,
    };
    let private = RegionTold {
        access: Access::READ,
        file: 0,
        bytes: 0x2222,
        offset: 0,
        ..told
    };
    let (file, key, bytes) = (0x0102_0304, 0x0506_0708, 0x2000);
    for (name, message, fields) in [
        ("ring", SocketMessage::Ring, ""),
        (
            "file-wanted",
            SocketMessage::FileWanted { file },
            ", u64 file",
        ),
        (
            "file",
            SocketMessage::File { file, bytes },
            ", u64 file, u64 bytes",
        ),
        ("file-gone", SocketMessage::FileGone { file }, ", u64 file"),
        (
            "region-wanted",
            SocketMessage::RegionWanted { key },
            ", u64 key",
        ),
        (
            "region",
            SocketMessage::Region(told),
            ", u64 key, len, access and slot, open, file, bytes, offset",
        ),
        (
            "region-private",
            SocketMessage::RegionPrivate {
                told: private,
                address: 0x8888,
            },
            ", u64 key, len, access and slot, open, address",
        ),
        (
            "region-refused",
            SocketMessage::RegionRefused { key },
            ", u64 key",
        ),
        ("voids", SocketMessage::Voids { bytes }, ", u64 bytes"),
        ("attach-refused", SocketMessage::AttachRefused, ""),
    ] {
        let encoded = message.encode();
        hold_in("socket", name, &encoded, &format!("u8 kind{fields}"));
        let decoded = SocketMessage::decode(&encoded);
        assert_eq!(decoded, Ok(Some((message, encoded.len()))));
    }
}

#[test]
fn golden_lines_of_a_ring() {
    let (_fd, segment) = segment_create(LAYOUT).unwrap();
    let segment = Arc::new(segment);
    let mut writer = RingWriter::new(SegmentLines::small(&segment, LAYOUT, 0));
    let long: Vec<u8> = (0..100).collect();
    for (id, payload) in [(1, &b"one line"[..]), (2, &long)] {
        assert!(writer.room(3).unwrap());
        writer.publish(&frame(id, payload), b"uh", &[payload]);
    }
    let mut marker = [0; 32];
    marker[0] = MARKER_KIND;
    writer.publish(&marker, &[], &[]);
    let fields = "lines of 64 bytes: u64 sequence word, frame header, body; later lines of a frame \
                  are body only";
    let lines = bytes(&segment, LAYOUT.small_at(0), 5 * LINE_BYTES);
    hold("ring-lines", &lines, fields);

    let mut reader = RingReader::new(SegmentLines::small(&segment, LAYOUT, 0));
    assert!(reader.ready());
    assert!(
        !reader.advance(10),
        "a quarter of the ring is published at a time"
    );
    reader.publish();
    let words = bytes(&segment, 0, 2 * LINE_BYTES);
    hold(
        "ring-consumed",
        &words,
        "u64 SmallConsumed, 56 zeros, u64 LargeConsumed, 56 zeros",
    );
}
