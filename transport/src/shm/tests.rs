//! Two wires of one process on one segment, driven by hand: what each side can reach of the
//! other's memory, and what becomes of it when the other side goes mad.

use std::os::fd::AsFd;
use std::sync::Arc;

use mio::net::UnixStream;

use super::life::life_page;
use super::socket::{RegionTold, SocketMessage};
use super::{Layout, MapBudget, ShmMemory, ShmSharing, ShmWire};
use crate::backend::{Posted, PullSegment, Pulled, RxPool, Want, Wire, WireFault};
use crate::buf::file::FileRules;
use crate::buf::mapping::Mapping;
use crate::buf::{Buf, BufPool};
use crate::one_sided::{
    Access, Atomic, OneSidedError, OneSidedOp, PutBytes, RegionTable, RemoteKey, Returned, Taken,
};
use crate::wire::{FrameHeader, FrameKind};

const LAYOUT: Layout = Layout {
    ring_bytes: 8 << 10,
    bulk_bytes: 8 << 10,
};

/// One side of a channel.
struct Side {
    wire: ShmWire,
    pool: BufPool,
    regions: Arc<RegionTable>,
    rx: RxPool,
}

struct Pair {
    a: Side,
    b: Side,
    segment: Arc<Mapping>,
}

fn pair(trusted: bool) -> Pair {
    let (fd, memory) = ShmMemory::create(LAYOUT).unwrap();
    let segment = Arc::clone(&memory.segment);
    let other = ShmMemory::open(fd, LAYOUT).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let side = |socket, memory, dialler| {
        let rules = FileRules {
            block_max_bytes: 4 << 20,
            files_max: 1000,
        };
        let pool = BufPool::with_files(1 << 30, Some(rules));
        let regions = Arc::new(RegionTable::new(8));
        let sharing = ShmSharing {
            trusted,
            pool: pool.number(),
            attach_min_bytes: Some(64 << 10),
            attach_max_bytes: 1 << 20,
            budget: Arc::new(MapBudget::new(16, 1 << 30)),
            regions: Arc::clone(&regions),
        };
        let life = life_page().unwrap().as_fd().try_clone_to_owned().unwrap();
        let socket = (socket, &[][..]);
        let wire = ShmWire::new(socket, life, memory, dialler, false, sharing).unwrap();
        Side {
            wire,
            pool,
            regions,
            rx: RxPool::default(),
        }
    };
    Pair {
        a: side(ours, memory, false),
        b: side(theirs, other, true),
        segment,
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn segment_of(source: crate::backend::PullSource, buf: &Buf) -> PullSegment {
    PullSegment {
        source,
        len: buf.len() as u64,
    }
}

/// What `b` pulls of buffers that `a` exposes.
fn pull(pair: &mut Pair, parts: &[Buf]) -> Option<Pulled> {
    let sources: Vec<_> = parts
        .iter()
        .map(|part| pair.a.wire.expose(part))
        .collect::<Option<_>>()?;
    let segments: Vec<_> = sources
        .iter()
        .zip(parts)
        .map(|(source, part)| segment_of(*source, part))
        .collect();
    let len = parts.iter().map(|part| part.len()).sum();
    let into = pair.b.pool.alloc(len).unwrap();
    pair.b.wire.pull_start(5, &segments, into).unwrap().ok()?;
    let pulled = loop {
        assert!(pair.b.wire.works());
        if let Some(pulled) = pair.b.wire.pull_poll(100_000).unwrap().1 {
            break pulled;
        }
        pair.a.wire.ready(false).unwrap();
    };
    for source in &sources {
        pair.a.wire.withdraw(source);
    }
    assert_eq!(pulled.id, 5);
    Some(pulled)
}

#[test]
fn pooled_buffers_are_copied_straight_from_the_senders_memory() {
    let mut pair = pair(true);
    for len in [10_000, 32 << 10, 100_000, 1 << 20, 3_000_000] {
        let bytes = pattern(len);
        let whole = pair.a.pool.copy_from(&bytes).unwrap();
        let parts = [
            whole.slice(1..len / 2).unwrap(),
            whole.slice(len / 3..len).unwrap(),
        ];
        let pulled = pull(&mut pair, &parts);
        if len < 16 << 10 {
            assert!(pulled.is_none(), "small blocks are private");
            continue;
        }
        let pulled = pulled.unwrap();
        assert!(pulled.whole);
        assert!(pulled.into[..len / 2 - 1] == bytes[1..len / 2]);
        assert!(pulled.into[len / 2 - 1..] == bytes[len / 3..]);
        assert!(pair.a.wire.sharing.exposed.is_empty());
    }
    assert_eq!(pair.b.wire.bulk_read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn private_buffers_are_read_by_the_kernel() {
    let mut pair = pair(true);
    let bytes = pattern(1 << 20);
    let pulled = pull(&mut pair, &[Buf::from_vec(bytes.clone())]).unwrap();
    if let Some(why) = super::attach::attach_refused() {
        assert!(!pulled.whole);
        println!("SKIP: {why}");
        return;
    }
    assert!(pulled.whole && *pulled.into == *bytes);
    assert!(pull(&mut pair, &[Buf::from_vec(pattern(1000))]).is_none());
    // Who is awake streams what is long; who sleeps is left alone.
    let long = [Buf::from_vec(pattern(2 << 20))];
    assert!(pull(&mut pair, &long).is_none());
    let want = Want {
        room: false,
        bulk_in: false,
        bulk_room: false,
    };
    assert!(pair.a.wire.arm(want).unwrap());
    assert!(pull(&mut pair, &long).unwrap().whole);
}

#[test]
fn buffers_of_a_sender_that_is_gone_are_not_taken_for_its_message() {
    let mut pair = pair(true);
    let buf = pair.a.pool.copy_from(&pattern(100_000)).unwrap();
    let source = pair.a.wire.expose(&buf).unwrap();
    let into = pair.b.pool.alloc(buf.len()).unwrap();
    let segments = [segment_of(source, &buf)];
    pair.b.wire.pull_start(5, &segments, into).unwrap().unwrap();
    while pair.b.wire.pull_poll(1000).unwrap().0 == 0 {
        pair.a.wire.ready(false).unwrap();
    }
    // The sender ends the channel, has its buffer back and uses it again.
    let Pair { a, mut b, .. } = pair;
    drop(a.wire);
    buf.try_into_mut().unwrap().fill(9);
    let fault = loop {
        match b.wire.pull_poll(30_000) {
            Ok((_, pulled)) => assert!(pulled.is_none(), "a message of other bytes"),
            Err(fault) => break fault,
        }
        match b.wire.recv_frame(&mut b.rx) {
            Ok(received) => assert!(received.is_none()),
            Err(fault) => break fault,
        }
    };
    assert!(matches!(fault, WireFault::Dead));
}

#[test]
fn other_applications_see_nothing() {
    let mut pair = pair(false);
    let buf = pair.a.pool.copy_from(&pattern(1 << 20)).unwrap();
    assert!(pair.a.wire.expose(&buf).is_none());
    let source = [1; 24];
    let into = pair.b.pool.alloc(1 << 20).unwrap();
    let segment = segment_of(source, &buf);
    assert!(
        pair.b
            .wire
            .pull_start(1, &[segment], into)
            .unwrap()
            .is_err()
    );
    let region = pair.a.regions.create(64, Access::ALL).unwrap();
    assert!(matches!(
        put(&mut pair, region.key(), 0, b"x"),
        Taken::Unsupported(_)
    ));
    assert!(!pair.b.wire.has_work(), "nothing was asked");
}

#[test]
fn files_of_other_pools_are_not_shown() {
    let mut pair = pair(true);
    let buf = pair.b.pool.copy_from(&pattern(40_000)).unwrap();
    assert!(pair.a.wire.expose(&buf).is_none());
    let region = pair.a.regions.share(buf).unwrap();
    resolve(&mut pair, region);
    assert!(matches!(
        get(&mut pair, region, 0, 8),
        Taken::Unsupported(_)
    ));
}

#[test]
fn freed_files_are_let_go_of() {
    let mut pair = pair(true);
    let buf = pair.a.pool.copy_from(&pattern(4 << 20)).unwrap();
    assert!(pull(&mut pair, std::slice::from_ref(&buf)).unwrap().whole);
    let file = buf.file().unwrap().0.number;
    assert!(pair.b.wire.sharing.pulls.maps.has(file));
    drop(buf);
    // The pool is what keeps it.
    pair.a.pool = BufPool::new(0);
    assert!(pair.a.wire.works());
    while pair.b.wire.sharing.pulls.maps.has(file) {
        let _ = pair.a.wire.pull_poll(1).unwrap();
        pair.b.wire.ready(false).unwrap();
    }
}

/// There was no descriptor left to receive one by: messages are streamed, and regions asked for.
#[test]
fn without_a_descriptor_memory_is_not_mapped() {
    let mut pair = pair(true);
    let buf = pair.a.pool.copy_from(&pattern(100_000)).unwrap();
    let source = pair.a.wire.expose(&buf).unwrap();
    let into = pair.b.pool.alloc(buf.len()).unwrap();
    let segments = [segment_of(source, &buf)];
    pair.b.wire.pull_start(5, &segments, into).unwrap().unwrap();
    let file = buf.file().unwrap().0;
    let (number, bytes) = (file.number, file.len() as u64);
    let message = SocketMessage::File {
        file: number,
        bytes,
    };
    pair.b.wire.heard(message, None).unwrap();
    assert!(!pair.b.wire.pull_poll(1000).unwrap().1.unwrap().whole);
    let key = pair.a.regions.create(8, Access::ALL).unwrap().key();
    assert!(matches!(get(&mut pair, key, 0, 8), Taken::Unsupported(_)));
    let told = RegionTold {
        key: key.0,
        len: 8,
        slot: 0,
        open: 1,
        access: Access::ALL,
        file: 0,
        bytes: 4096,
        offset: 0,
    };
    let message = SocketMessage::Region(told);
    pair.b.wire.heard(message, None).unwrap();
    assert!(matches!(get(&mut pair, key, 0, 8), Taken::Unsupported(_)));
    assert!(!pair.b.wire.sharing.regions.asks());
}

/// The ring is full, and the put's bytes are there: nothing is to be done until the peer reads.
#[test]
fn a_put_that_cannot_be_told_of_yet_lets_its_initiator_sleep() {
    const LEN: usize = 1 << 20;
    let mut pair = pair(true);
    let region = pair.a.regions.create(LEN, Access::ALL).unwrap();
    resolve(&mut pair, region.key());
    let buf = pair.b.pool.copy_from(&pattern(LEN)).unwrap();
    let put = OneSidedOp::Put {
        key: region.key(),
        offset: 0,
        bytes: PutBytes::Held(buf),
        immediate: Some(7),
    };
    assert!(matches!(
        pair.b.wire.one_sided(2, put).unwrap(),
        Taken::Pending
    ));
    let header = FrameHeader::new(FrameKind::Eager);
    while pair.b.wire.send_frame(&header, &[], &[]).unwrap() == Posted::Done {}
    let want = Want {
        room: false,
        bulk_in: false,
        bulk_room: false,
    };
    while !pair.b.wire.arm(want).unwrap() {
        let _ = pair.b.wire.pull_poll(100_000).unwrap();
        assert!(pair.b.wire.one_sided_poll().unwrap().is_none());
    }
    assert!(pair.b.wire.works());
    let told = loop {
        if let Some(received) = pair.a.wire.recv_frame(&mut pair.a.rx).unwrap() {
            let header = received.header;
            pair.a.wire.recycle(received.buf, &mut pair.a.rx);
            if header.kind() == Ok(FrameKind::Immediate) {
                break header;
            }
        }
        let _ = pair.b.wire.pull_poll(100_000).unwrap();
    };
    assert_eq!((told.id(), told.aux()), (7, LEN as u64));
    let completed = pair.b.wire.one_sided_poll().unwrap();
    assert_eq!(completed.unwrap().outcome, Ok(0));
}

/// Nothing more is sent: what was freed is told of before the sender sleeps.
#[test]
fn who_sleeps_keeps_no_memory_of_others() {
    let mut pair = pair(true);
    let buf = pair.a.pool.copy_from(&pattern(4 << 20)).unwrap();
    assert!(pull(&mut pair, std::slice::from_ref(&buf)).unwrap().whole);
    let file = buf.file().unwrap().0.number;
    let region = pair.a.regions.create(4096, Access::ALL).unwrap().key();
    resolve(&mut pair, region);
    let mapped = |pair: &Pair| pair.b.wire.sharing.regions.known_count();
    assert_eq!(mapped(&pair), 1);
    drop(buf);
    pair.a.pool = BufPool::new(0);
    assert!(pair.a.regions.close(region));
    let want = Want {
        room: false,
        bulk_in: false,
        bulk_room: false,
    };
    assert!(pair.a.wire.arm(want).unwrap());
    pair.b.wire.ready(false).unwrap();
    assert!(!pair.b.wire.sharing.pulls.maps.has(file));
    assert!(pair.b.wire.arm(want).unwrap());
    assert_eq!(mapped(&pair), 0);
}

#[test]
fn regions_of_an_endpoint_that_is_gone_are_void() {
    let mut pair = pair(true);
    let buf = pair.a.pool.copy_from(&pattern(40_000)).unwrap();
    let key = pair.a.regions.share(buf).unwrap();
    resolve(&mut pair, key);
    assert_eq!(outcome(get(&mut pair, key, 0, 8)), Ok(0));
    let Pair { a, mut b, .. } = pair;
    drop((a.wire, a.regions));
    let into = b.pool.alloc(8).unwrap();
    let get = OneSidedOp::Get {
        key,
        offset: 0,
        into,
    };
    let got = b.wire.one_sided(2, get).unwrap();
    assert_eq!(outcome(got), Err(OneSidedError::Key));
}

#[test]
fn what_was_never_exposed_is_not_had() {
    let mut pair = pair(true);
    let buf = pair.a.pool.copy_from(&pattern(1 << 20)).unwrap();
    let source = pair.a.wire.expose(&buf).unwrap();
    pair.a.wire.withdraw(&source);
    let into = pair.b.pool.alloc(1 << 20).unwrap();
    let segments = [segment_of(source, &buf)];
    pair.b.wire.pull_start(1, &segments, into).unwrap().unwrap();
    let pulled = loop {
        pair.a.wire.ready(false).unwrap();
        if let Some(pulled) = pair.b.wire.pull_poll(1000).unwrap().1 {
            break pulled;
        }
    };
    assert!(!pulled.whole);
    // What lies outside the file ends the channel.
    let mut source = pair.a.wire.expose(&buf).unwrap();
    source[16..].copy_from_slice(&1_u64.to_le_bytes());
    let segments = [segment_of(source, &buf)];
    let into = pulled.into;
    pair.b.wire.pull_start(2, &segments, into).unwrap().unwrap();
    let fault = loop {
        pair.a.wire.ready(false).unwrap();
        if let Err(fault) = pair.b.wire.pull_poll(1 << 20) {
            break fault;
        }
    };
    assert!(matches!(fault, WireFault::Protocol(_)));
}

fn put<'a>(pair: &mut Pair, key: RemoteKey, offset: u64, bytes: &'a [u8]) -> Taken<'a> {
    let op = OneSidedOp::Put {
        key,
        offset,
        bytes: PutBytes::Copied(bytes),
        immediate: None,
    };
    pair.b.wire.one_sided(1, op).unwrap()
}

fn get(pair: &mut Pair, key: RemoteKey, offset: u64, len: usize) -> Taken<'static> {
    let into = pair.b.pool.alloc(len).unwrap();
    pair.b
        .wire
        .one_sided(2, OneSidedOp::Get { key, offset, into })
        .unwrap()
}

fn atomic(pair: &mut Pair, key: RemoteKey, offset: u64, atomic: Atomic) -> Taken<'static> {
    let op = OneSidedOp::Atomic {
        key,
        offset,
        atomic,
    };
    pair.b.wire.one_sided(3, op).unwrap()
}

fn outcome(taken: Taken<'_>) -> Result<u64, OneSidedError> {
    match taken {
        Taken::Done(outcome, _) => outcome,
        other => panic!("not done directly: {other:?}"),
    }
}

/// Has `b` learn of a region of `a`'s, or that it cannot.
fn resolve(pair: &mut Pair, key: RemoteKey) {
    assert!(matches!(get(pair, key, 0, 0), Taken::Unsupported(_)));
    while pair.b.wire.sharing.regions.asks() {
        pair.a.wire.ready(false).unwrap();
        pair.b.wire.ready(false).unwrap();
    }
}

#[test]
fn operations_are_loads_and_stores_once_a_region_is_known() {
    let mut pair = pair(true);
    let region = pair.a.regions.create(1 << 20, Access::ALL).unwrap();
    let key = region.key();
    resolve(&mut pair, key);
    assert_eq!(outcome(put(&mut pair, key, 8, b"abcdefgh")), Ok(0));
    let mut bytes = [0; 8];
    region.read(8, &mut bytes).unwrap();
    assert_eq!(&bytes, b"abcdefgh");
    assert_eq!(
        outcome(atomic(&mut pair, key, 0, Atomic::FetchAdd(3))),
        Ok(0)
    );
    assert_eq!(region.fetch_add(0, 4), Ok(3));
    let swap = Atomic::CompareSwap {
        expected: 7,
        new: 1,
    };
    assert_eq!(outcome(atomic(&mut pair, key, 0, swap)), Ok(7));
    assert_eq!(region.load(0), Ok(1));
    let misaligned = atomic(&mut pair, key, 4, Atomic::FetchAdd(1));
    assert_eq!(outcome(misaligned), Err(OneSidedError::Misaligned(4)));
    let outside = outcome(put(&mut pair, key, 1 << 20, b"x"));
    assert!(matches!(outside, Err(OneSidedError::Range { .. })));
    match get(&mut pair, key, 8, 8) {
        Taken::Done(
            Ok(0),
            Returned {
                data: Some(data), ..
            },
        ) => assert_eq!(&*data, b"abcdefgh"),
        other => panic!("{other:?}"),
    }
    assert!(!pair.a.wire.rx.ring.ready(), "frames were sent");
    // What is long goes by pieces.
    let op = OneSidedOp::Put {
        key,
        offset: 0,
        bytes: PutBytes::Held(Buf::from_vec(pattern(1 << 20))),
        immediate: Some(9),
    };
    assert!(matches!(
        pair.b.wire.one_sided(4, op).unwrap(),
        Taken::Pending
    ));
    let done = loop {
        assert!(pair.b.wire.works());
        if let Some(done) = pair.b.wire.one_sided_poll().unwrap() {
            break done;
        }
        assert!(pair.b.wire.pull_poll(100_000).unwrap().0 <= 100_000);
    };
    assert_eq!((done.id, done.outcome), (4, Ok(0)));
    assert!(*done.returned.buf.unwrap() == *pattern(1 << 20));
    let mut bytes = vec![0; 1 << 20];
    region.read(0, &mut bytes).unwrap();
    assert!(bytes == pattern(1 << 20));
    let told = pair.a.wire.recv_frame(&mut pair.a.rx).unwrap().unwrap();
    assert_eq!(told.header.kind(), Ok(FrameKind::Immediate));
    assert_eq!((told.header.id(), told.header.aux()), (9, 1 << 20));
}

#[test]
fn closed_regions_are_void_at_once() {
    let mut pair = pair(true);
    let region = pair.a.regions.create(64, Access::ALL).unwrap();
    let frozen = pair.a.pool.copy_from(&pattern(50_000)).unwrap();
    let shared = pair
        .a
        .regions
        .share(frozen.slice(3..50_000).unwrap())
        .unwrap();
    for key in [region.key(), shared] {
        resolve(&mut pair, key);
    }
    match get(&mut pair, shared, 10, 40_000) {
        Taken::Done(
            Ok(0),
            Returned {
                data: Some(data), ..
            },
        ) => {
            assert!(*data == frozen[13..40_013]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        outcome(put(&mut pair, shared, 0, b"x")),
        Err(OneSidedError::Forbidden)
    );
    for key in [region.key(), shared] {
        assert!(pair.a.regions.close(key));
        assert_eq!(outcome(get(&mut pair, key, 0, 8)), Err(OneSidedError::Key));
    }
    // Another region in the same slot is another region.
    let again = pair.a.regions.create(64, Access::READ).unwrap();
    assert!(matches!(
        put(&mut pair, region.key(), 0, b"x"),
        Taken::Unsupported(_)
    ));
    resolve(&mut pair, again.key());
    assert_eq!(
        outcome(put(&mut pair, again.key(), 0, b"x")),
        Err(OneSidedError::Forbidden)
    );
    assert_eq!(outcome(get(&mut pair, again.key(), 0, 8)), Ok(0));
}

/// Memory that cannot be mapped, as of the largest objects: the kernel reads it, and nobody runs.
#[test]
fn private_regions_are_read_by_the_kernel() {
    let mut pair = pair(true);
    let bytes = pattern(2 << 20);
    let key = pair.a.regions.share(Buf::from_vec(bytes.clone())).unwrap();
    resolve(&mut pair, key);
    let short = get(&mut pair, key, 5, 1000);
    if let Some(why) = super::attach::attach_refused() {
        println!("SKIP: {why}");
        return;
    }
    let Taken::Done(Ok(0), returned) = short else {
        panic!("not done directly");
    };
    assert!(*returned.data.unwrap() == bytes[5..1005]);
    assert_eq!(
        outcome(put(&mut pair, key, 0, b"x")),
        Err(OneSidedError::Forbidden)
    );
    let outside = outcome(get(&mut pair, key, 2 << 20, 1));
    assert!(matches!(outside, Err(OneSidedError::Range { .. })));
    let long = |pair: &mut Pair, close: bool| {
        assert!(matches!(get(pair, key, 1, (2 << 20) - 1), Taken::Pending));
        let _ = pair.b.wire.pull_poll(100_000).unwrap();
        assert!(!close || pair.a.regions.close(key));
        loop {
            assert!(pair.b.wire.works());
            if let Some(done) = pair.b.wire.one_sided_poll().unwrap() {
                break done;
            }
            assert!(pair.b.wire.pull_poll(100_000).unwrap().0 <= 100_000);
        }
    };
    let done = long(&mut pair, false);
    assert_eq!(done.outcome, Ok(0));
    assert!(*done.returned.data.unwrap() == bytes[1..]);
    assert!(!pair.a.wire.rx.ring.ready(), "frames were sent");
    // Closed in the middle: what came may be anything, and the buffer comes back.
    let done = long(&mut pair, true);
    assert_eq!(done.outcome, Err(OneSidedError::Key));
    assert!(done.returned.data.is_some());
    assert_eq!(outcome(get(&mut pair, key, 0, 8)), Err(OneSidedError::Key));
}

/// The owner tells of memory that is not there: nothing is taken for the region's bytes.
#[test]
fn private_regions_that_cannot_be_read_are_asked_for_by_frames() {
    for len in [1000, 2 << 20] {
        let mut pair = pair(true);
        let key = pair.a.regions.create(8, Access::READ).unwrap().key();
        resolve(&mut pair, key);
        let other = RemoteKey(key.0 ^ 1);
        assert!(matches!(get(&mut pair, other, 0, 0), Taken::Unsupported(_)));
        let open = pair.a.regions.find(key).unwrap().open.unwrap();
        let told = RegionTold {
            key: other.0,
            len: 2 << 20,
            slot: open.0,
            open: open.1,
            access: Access::READ,
            file: 0,
            bytes: 2 << 20,
            offset: 0,
        };
        let message = SocketMessage::RegionPrivate { told, address: 64 };
        pair.b.wire.heard(message, None).unwrap();
        for _ in 0..2 {
            match get(&mut pair, other, 0, len) {
                Taken::Unsupported(OneSidedOp::Get { into, .. }) => assert_eq!(into.len(), len),
                other => panic!("{other:?}"),
            }
        }
        assert!(!pair.b.wire.sharing.regions.asks());
    }
}

#[test]
fn buffers_of_long_operations_come_back_when_the_channel_ends() {
    const LEN: usize = 1 << 20;
    let mut pair = pair(true);
    let region = pair.a.regions.create(LEN, Access::ALL).unwrap();
    resolve(&mut pair, region.key());
    let into = pair.b.pool.alloc(LEN).unwrap();
    let buf = pair.b.pool.copy_from(&pattern(LEN)).unwrap();
    let get = OneSidedOp::Get {
        key: region.key(),
        offset: 0,
        into,
    };
    let put = OneSidedOp::Put {
        key: region.key(),
        offset: 0,
        bytes: PutBytes::Held(buf),
        immediate: Some(1),
    };
    // One that is complete and was not told of, and one that is under way.
    for (id, op) in [(1, get), (2, put)] {
        assert!(matches!(
            pair.b.wire.one_sided(id, op).unwrap(),
            Taken::Pending
        ));
    }
    while !pair.b.wire.sharing.regions.has_completed() {
        let _ = pair.b.wire.pull_poll(100_000).unwrap();
    }
    let ended = pair.b.wire.one_sided_end();
    assert_eq!(ended.len(), 2);
    for completed in ended {
        let Returned { data, buf } = completed.returned;
        match completed.id {
            1 => assert_eq!(data.unwrap().len(), LEN),
            _ => assert_eq!(buf.unwrap().len(), LEN),
        }
    }
    assert!(pair.b.wire.one_sided_end().is_empty());
}

/// A thread that writes random bytes to all memory of a channel until it is told to stop.
mod scribbling {
    use super::*;
    use crate::sync::atomic::{AtomicBool, Ordering};

    /// What one side of the channel does in a round; an error ends the channel.
    fn step(
        side: &mut Side,
        other: &Buf,
        key: RemoteKey,
        random: &mut fastrand::Rng,
    ) -> Result<(), WireFault> {
        let payload = [7; 3000];
        let len = random.usize(0..payload.len());
        let header = FrameHeader::new(FrameKind::Eager).with_len(len as u64);
        let (Posted::Done | Posted::Busy) =
            side.wire.send_frame(&header, &[], &[&payload[..len]])?;
        let _ = side.wire.bulk_write(&payload[..len])?;
        let _ = side.wire.bulk_read(&mut [0; 5000])?;
        side.wire.ready(false)?;
        if let Some(source) = side.wire.expose(other) {
            side.wire.withdraw(&source);
        }
        let offset = random.u64(0..5000);
        let op = match random.u8(0..3) {
            0 => OneSidedOp::Put {
                key,
                offset,
                bytes: PutBytes::Copied(&payload[..len]),
                immediate: random.bool().then_some(5),
            },
            1 => OneSidedOp::Get {
                key,
                offset,
                into: side.pool.alloc(len).unwrap(),
            },
            _ => OneSidedOp::Atomic {
                key,
                offset: offset & !7,
                atomic: Atomic::FetchAdd(1),
            },
        };
        let _ = side.wire.one_sided(1, op)?;
        let _ = side.wire.pull_poll(10_000)?;
        let _ = side.wire.one_sided_poll()?;
        if let Some(received) = side.wire.recv_frame(&mut side.rx)? {
            if received.header.kind() == Ok(FrameKind::Eager) {
                assert!(received.payload().len() <= crate::backend::RX_BYTES);
            }
            side.wire.recycle(received.buf, &mut side.rx);
        }
        Ok(())
    }

    /// Stops the scribbler, also when a check fails.
    struct Stop<'a>(&'a AtomicBool);

    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Rounds until the channel fails or enough are done; whether it failed.
    fn channel(seed: u64) -> bool {
        let mut pair = pair(true);
        let mut random = fastrand::Rng::with_seed(seed);
        let bytes = pattern(100_000);
        let exposed = pair.a.pool.copy_from(&bytes).unwrap();
        let region = pair.a.regions.create(8000, Access::ALL).unwrap();
        let backing = pair.b.regions.create(8000, Access::ALL).unwrap();
        resolve(&mut pair, region.key());
        let source = pair.a.wire.expose(&exposed).unwrap();
        let segments = [segment_of(source, &exposed)];
        let stop = AtomicBool::new(false);
        let mut failed = false;
        let (segment, pulled_from) = (Arc::clone(&pair.segment), exposed.file().unwrap());
        let (file, at) = (Arc::clone(pulled_from.0), pulled_from.1 as usize);
        let mut scribbler = random.fork();
        let regions = Arc::clone(&pair.a.regions);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let noise: [u8; 8] = std::array::from_fn(|_| scribbler.u8(..));
                    // Mostly where it matters: words, and the first lines of the rings.
                    let to = match scribbler.u8(0..4) {
                        0 => scribbler.usize(0..segment.len - 8),
                        1 => scribbler.usize(0..2048),
                        _ => 4096 + scribbler.usize(0..8192),
                    };
                    segment.write(to, &noise[..scribbler.usize(1..=8)]);
                    file.scribble(at + scribbler.usize(0..99_000), &noise);
                    let _ = region.write(scribbler.usize(0..7992), &noise);
                    regions
                        .words()
                        .unwrap()
                        .scribble(scribbler.usize(0..56), &noise);
                }
            });
            let _stop = Stop(&stop);
            for round in 0..200 {
                if round % 20 == 0 && !pair.b.wire.sharing.pulls.ready() {
                    let into = pair.b.pool.alloc(exposed.len()).unwrap();
                    let _ = pair.b.wire.pull_start(round, &segments, into).unwrap();
                }
                let b = step(&mut pair.b, &exposed, region.key(), &mut random);
                let a = step(&mut pair.a, &exposed, backing.key(), &mut random);
                if a.is_err() || b.is_err() {
                    failed = true;
                    break;
                }
            }
        });
        failed
    }

    #[test]
    fn a_peer_that_scribbles_over_all_shared_memory_gets_errors() {
        let failed = (0..60).filter(|seed| channel(*seed)).count();
        assert!(failed > 0, "nothing was noticed");
    }
}
