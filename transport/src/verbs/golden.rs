//! What two sides tell each other of their ports and queue pairs, held to golden files:
//! `docs/wire.md`, "RDMA".
//!
//! The layout is this module's secret, so it is held here; the other formats are held by
//! `tests/tests/golden.rs`. `PRAAS_BLESS=1` rewrites the files, as it does there.

use std::path::Path;

use zerocopy::IntoBytes;
use zerocopy::byteorder::little_endian::{U16, U32, U64};

use super::params::{
    Candidate, Card, FLAG_ETHERNET, FLAG_EXACT, FLAG_NEAR, FLAG_ROUTABLE, QueueCard,
    candidates_decode, candidates_encode,
};
use super::pull::source_encode;
use super::words::{LaneWord, Tell};

fn hold(file: &str, bytes: &[u8], fields: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/verbs");
    let path = golden.join(file);
    if std::env::var_os("PRAAS_BLESS").is_some() {
        std::fs::create_dir_all(&golden).unwrap();
        return std::fs::write(path, bytes).unwrap();
    }
    let expected = std::fs::read(&path).unwrap_or_default();
    assert!(
        expected == bytes,
        "tests/golden/verbs/{file} differs; the fields are {fields}. If that is meant, it is a new \
         version of the layout: change docs/wire.md, \"RDMA\", and rewrite the files by `just bless`"
    );
}

fn gid(last: u8) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 77, 0, last]
}

#[test]
fn golden_ports_in_accept() {
    let ports = [
        Candidate {
            gid: gid(1),
            lid: U16::ZERO,
            mtu: 3,
            flags: FLAG_ETHERNET | FLAG_EXACT | FLAG_NEAR | FLAG_ROUTABLE,
            reserved: [0; 4],
        },
        Candidate {
            gid: [0xfe; 16],
            lid: U16::new(0x1234),
            mtu: 5,
            flags: 0,
            reserved: [0; 4],
        },
    ];
    let bytes = candidates_encode(&ports);
    hold(
        "accept",
        &bytes,
        "u8 count, 3 zeros; of each: gid, u16 lid, u8 mtu, u8 flags, 4 zeros",
    );
    assert_eq!(candidates_decode(&bytes), Ok(ports.to_vec()));
}

#[test]
fn golden_cards() {
    let card = QueueCard {
        mtu: 3,
        reads: 16,
        lid: U16::new(0x1234),
        credits: U32::new(4),
        frame_max: U32::new(8256),
        ..QueueCard::new(1, 2, 0x0012_3456, 0x00ab_cdef, gid(2))
    };
    let reject = Card::Reject {
        attempt: 2,
        text: "rxe0 port 1: no".into(),
    };
    let fields = "u8 kind, u8 candidate, u8 mtu, u8 reads, u16 lid, u8 attempt, 0, u32 number, u32 \
                  sequence, u32 credits, u32 frame_max, gid, 24 zeros";
    for (file, card, fields) in [
        ("offer", Card::Offer(card), fields),
        ("answer", Card::Answer(card), fields),
        (
            "reject",
            reject,
            "u8 kind, u8 attempt, u8 length, 0, text, zeros",
        ),
    ] {
        hold(file, &card.encode(), fields);
        assert_eq!(Card::decode(&card.encode()), Ok(card));
    }
}

#[test]
fn golden_words() {
    let tell = Tell {
        key: U64::new(0x0102_0304_0506_0708),
        len: U64::new(1 << 20),
        at: U64::new(0x1112_1314_1516_1718),
        device_key: U32::new(0x2122_2324),
        access: 3,
        native: 1,
        reserved: U16::ZERO,
    };
    hold(
        "tell",
        tell.as_bytes(),
        "u64 key, u64 length, u64 address, u32 device's key, u8 access, u8 native, 2 zeros",
    );
    let lane = LaneWord {
        offer: U32::new(3),
        number: U32::new(0x0012_3456),
        sequence: U32::new(0x00ab_cdef),
    };
    hold(
        "lane",
        lane.as_bytes(),
        "u32 offer, u32 number, u32 sequence",
    );
}

#[test]
fn golden_source_of_a_pull() {
    let source = source_encode(0x0001_0203_0405_0607, 0x0809_0a0b, 0x0c0d_0e0f);
    hold(
        "source",
        &source,
        "u64 address, u32 key, u32 the sender's number for it, 8 zeros",
    );
}
