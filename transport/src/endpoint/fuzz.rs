//! A hostile peer of an open channel: control frames and bulk bytes in any order.
//!
//! The peer is connected and authenticated, and lies: about lengths, transfers that are not, bytes
//! that nobody asked for. The channel ends with an error or goes on; what was posted comes back
//! exactly once either way.

use smallvec::SmallVec;

use super::channel::Channel;
use super::types::ChannelInfo;
use crate::address::TransportKind;
use crate::backend::{AnyWire, RxPool, Wire};
use crate::buf::{Buf, BufPool};
use crate::mem::{MemLink, MemWire};
use crate::wire::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, Incarnation, PeerIdentity};

const LIMIT: u64 = 4096;
const TRANSFERS_MAX: usize = 4;

/// Plays the hostile peer that `bytes` describe.
#[doc(hidden)]
pub fn fuzz_channel(bytes: &[u8]) {
    let (ours, theirs) = MemLink::pair();
    let info = ChannelInfo {
        peer: PeerIdentity {
            application: "a".into(),
            name: "".into(),
            incarnation: Incarnation(0),
            role: None,
            client_id: 1,
        },
        kind: TransportKind::Mem,
        dialled: true,
        eager_max: 64,
    };
    let wire = AnyWire::Mem(MemWire::new(ours, 64));
    let mut channel = Channel::new(wire, info, [0; 16], None, TRANSFERS_MAX);
    let mut peer = MemWire::new(theirs, 64);
    let pool = BufPool::new(64 << 10);
    let (mut posted, mut back, mut announced) = (0, 0, Vec::new());
    let mut rest = bytes;
    while let Some((step, more)) = rest.split_first() {
        rest = more;
        let alive = match step % 6 {
            0 => {
                let Some((header, more)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() else {
                    break;
                };
                rest = more;
                frame(&mut channel, header, &mut announced, &mut back)
            }
            1 => {
                let buf = Buf::from_vec(vec![1; 1 + usize::from(step / 6) * 40]);
                match channel.send_large(1, 2, &[], buf, 3) {
                    Ok(Ok(())) => {
                        posted += 1;
                        true
                    }
                    Ok(Err(_)) => true,
                    Err(_) => false,
                }
            }
            2 => {
                if let Some((id, len)) = announced.pop()
                    && let Ok(into) = pool.alloc(len)
                {
                    // A stale announcement is an error to the user, not to the channel.
                    drop(channel.accept(id, into));
                }
                true
            }
            3 => {
                if let Some((id, _)) = announced.pop() {
                    drop(channel.refuse(id, 1));
                }
                true
            }
            4 => {
                let (now, more) = rest.split_at(rest.len().min(usize::from(step / 6) + 32));
                rest = more;
                peer.bulk_write(now).is_ok()
            }
            _ => round(&mut channel, &mut peer),
        };
        if !alive {
            break;
        }
    }
    back += channel.out_drain().len();
    assert_eq!(posted, back, "a posted buffer was lost or came back twice");
}

/// A frame from the peer, handled as the endpoint would.
fn frame(
    channel: &mut Channel,
    bytes: &[u8; FRAME_HEADER_BYTES],
    announced: &mut Vec<(u64, usize)>,
    back: &mut usize,
) -> bool {
    let Ok((kind, header)) = FrameHeader::decode(bytes) else {
        return false;
    };
    if kind == FrameKind::Rts {
        let Ok(id) = channel.announced(&header, &[], LIMIT) else {
            return false;
        };
        announced.push((id, header.len() as usize));
        return true;
    }
    match channel.control_frame(kind, &header) {
        Ok(done) => {
            *back += usize::from(done.is_some());
            true
        }
        Err(_) => false,
    }
}

/// A round of our progress, and the peer reading what comes.
fn round(channel: &mut Channel, peer: &mut MemWire) -> bool {
    let mut done = SmallVec::new();
    if channel.pull(&mut done).is_err() || channel.push().is_err() {
        return false;
    }
    for message in done {
        assert!(message.payload.len() as u64 <= LIMIT);
    }
    let mut pool = RxPool::default();
    while let Ok(Some(received)) = peer.recv_frame(&mut pool) {
        peer.recycle(received.buf, &mut pool);
    }
    let mut bytes = [0; 4096];
    while matches!(peer.bulk_read(&mut bytes), Ok(1..)) {}
    true
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    /// Frames that fit what came before often enough to get somewhere.
    fn step() -> impl Strategy<Value = Vec<u8>> {
        let frame = (1..12_u8, 0..6_u64, 0..300_u64, 0..6_u64);
        let frame = frame.prop_map(|(kind, id, len, aux)| {
            // Transfer numbers have a generation, which counts from one, above the slot.
            let id = (id / 2) | ((1 + id % 2) << 32);
            let kind = FrameKind::from_code(kind).unwrap_or(FrameKind::Data);
            let header = FrameHeader::new(kind).with_id(id).with_len(len);
            header.with_aux(if kind == FrameKind::Rts { id } else { aux * 40 })
        });
        prop_oneof![
            frame.clone().prop_map(|header| {
                let mut bytes = vec![0];
                bytes.extend(header.as_bytes());
                bytes
            }),
            frame.prop_map(|header| {
                let mut bytes = vec![4];
                bytes.extend(header.with_aux(0).as_bytes());
                bytes
            }),
            any::<u8>().prop_map(|step| vec![step]),
            (0..8_u8).prop_map(|step| vec![step * 6 + 1]),
            Just(vec![5]),
            Just(vec![2, 5]),
        ]
    }

    proptest! {
        #[test]
        fn a_lying_peer_ends_the_channel_or_nothing(
            steps in proptest::collection::vec(step(), 0..80),
        ) {
            fuzz_channel(&steps.concat());
        }
    }
}
