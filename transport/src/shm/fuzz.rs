//! A hostile peer, played by bytes: what it writes to the segment between our operations.
//!
//! The peer has the whole segment to write to, at any time. Whatever it does there, we get frames,
//! `Busy`, or an error that ends the channel; never a panic, and never more bytes than announced
//! limits allow.

use std::os::fd::AsFd;
use std::sync::Arc;

use mio::net::UnixStream;

use super::life::life_page;
use super::ring::RingWriter;
use super::segment::{SMALL_RING_BYTES, SegmentLines};
use super::{Layout, MapBudget, ShmMemory, ShmSharing, ShmWire};
use crate::backend::{RX_BYTES, RxPool, Want, Wire};
use crate::one_sided::RegionTable;
use crate::wire::{FrameHeader, FrameKind};

/// Rings as small as they may be, so that laps and full rings are near.
const LAYOUT: Layout = Layout {
    ring_bytes: 8 << 10,
    bulk_bytes: 8 << 10,
};

/// Steps of one run at most.
const STEPS_MAX: usize = 256;

/// What is left of the bytes that say what happens; zeros once they are used up.
struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        match self.rest.split_first() {
            Some((byte, rest)) => {
                self.rest = rest;
                *byte
            }
            None => 0,
        }
    }

    fn word(&mut self) -> u64 {
        let mut word = [0; 8];
        word.fill_with(|| self.byte());
        u64::from_le_bytes(word)
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        bytes
    }
}

/// Plays the hostile peer that `bytes` describe against a dialler's wire.
#[doc(hidden)]
pub fn fuzz_shm(bytes: &[u8]) {
    let Ok((_, memory)) = ShmMemory::create(LAYOUT) else {
        return;
    };
    let segment = Arc::clone(&memory.segment);
    let (Ok((socket, peer)), Ok(Ok(life))) = (
        UnixStream::pair(),
        life_page().map(|page| page.as_fd().try_clone_to_owned()),
    ) else {
        return;
    };
    let sharing = ShmSharing {
        trusted: true,
        pool: 0,
        attach_min_bytes: None,
        attach_max_bytes: 0,
        budget: Arc::new(MapBudget::new(8, 1 << 20)),
        regions: Arc::new(RegionTable::new(8)),
    };
    let socket = (socket, &[][..]);
    let Ok(mut wire) = ShmWire::new(socket, life, memory, true, false, sharing) else {
        return;
    };
    let mut pool = RxPool::default();
    let mut writer = RingWriter::new(SegmentLines::small(&segment, LAYOUT, 1));
    let mut script = Script { rest: bytes };
    for _ in 0..STEPS_MAX {
        if script.rest.is_empty() {
            break;
        }
        let alive = match script.byte() % 8 {
            0 => {
                let at = usize::from(u16::from_le_bytes([script.byte(), script.byte()])) * 8;
                if at + 8 <= LAYOUT.segment_bytes() {
                    segment.write(at, &script.word().to_le_bytes());
                }
                true
            }
            1 => {
                // A frame in its right place, whatever its header claims.
                let mut header = [0; 32];
                let claimed = script.bytes(32);
                header[..claimed.len()].copy_from_slice(claimed);
                let len = usize::from(script.byte()) * 4;
                writer.publish(&header, &[], &[script.bytes(len)]);
                true
            }
            2 => {
                writer = RingWriter::new(SegmentLines::large(&segment, LAYOUT, 1));
                true
            }
            3 => ours_receive(&mut wire, &mut pool),
            4 => ours_send(&mut wire, usize::from(script.byte()) * 16),
            5 => wire
                .bulk_write(&[7; 4096][..usize::from(script.byte()) * 16])
                .is_ok(),
            6 => wire.bulk_read(&mut [0; 4096]).is_ok(),
            _ => {
                let want = script.byte();
                let want = Want {
                    room: want & 1 != 0,
                    bulk_in: want & 2 != 0,
                    bulk_room: want & 4 != 0,
                };
                wire.arm(want).is_ok() && wire.ready(false).is_ok()
            }
        };
        if !alive {
            break;
        }
    }
    drop(peer);
}

fn ours_receive(wire: &mut ShmWire, pool: &mut RxPool) -> bool {
    let received = match wire.recv_frame(pool) {
        Ok(Some(received)) => received,
        Ok(None) => return true,
        Err(_) => return false,
    };
    assert!(received.user_header().len() <= 32);
    if received.header.kind() == Ok(FrameKind::Eager) {
        let len = received.payload().len();
        assert!(len <= RX_BYTES.min(SMALL_RING_BYTES.max(LAYOUT.ring_bytes / 2)));
    }
    wire.recycle(received.buf, pool);
    true
}

fn ours_send(wire: &mut ShmWire, len: usize) -> bool {
    let payload = vec![9; len.min(LAYOUT.ring_bytes / 2 - 256)];
    let header = FrameHeader::new(FrameKind::Eager).with_len(payload.len() as u64);
    wire.send_frame(&header, &[], &[&payload]).is_ok()
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pieces of scripts that get somewhere, so that random ones do.
    fn step() -> impl Strategy<Value = Vec<u8>> {
        let frame = |kind: u8, len: u8| {
            let mut bytes = vec![1, kind];
            bytes.resize(33, 0);
            bytes[17] = len;
            bytes.push(len.div_ceil(4));
            bytes.extend(vec![5; usize::from(len.div_ceil(4)) * 4]);
            bytes
        };
        prop_oneof![
            (0..12_u8, any::<u8>()).prop_map(move |(kind, len)| frame(kind, len)),
            Just(frame(super::super::ring::MARKER_KIND, 0)),
            Just(vec![2]),
            Just(vec![3]),
            any::<u8>().prop_map(|len| vec![4, len]),
            any::<u8>().prop_map(|len| vec![5, len]),
            Just(vec![6]),
            any::<u8>().prop_map(|want| vec![7, want]),
            (0..256_u16, prop_oneof![0..300_u64, any::<u64>()]).prop_map(|(at, word)| {
                let mut bytes = vec![0];
                bytes.extend(at.to_le_bytes());
                bytes.extend(word.to_le_bytes());
                bytes
            }),
            proptest::collection::vec(any::<u8>(), 0..40),
        ]
    }

    proptest! {
        #[test]
        fn a_hostile_peer_gets_errors(steps in proptest::collection::vec(step(), 0..60)) {
            fuzz_shm(&steps.concat());
        }
    }
}
