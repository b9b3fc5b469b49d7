//! Nothing is allocated for a small message or invocation once both sides are warm, and little for
//! what a mailbox remembers of its senders.
//!
//! The count is of the whole OS process, both sides of everything, so one test runs at a time.

use std::sync::{Mutex, PoisonError};

use praas_runtime::invocation::PAYLOAD_INLINE_BYTES;
use praas_runtime::mailbox::{MailMessage, Mailbox, MailboxLimits, Put, PutId};
use praas_transport::buf::CountingAlloc;

#[path = "../../benches/src/hot.rs"]
#[allow(dead_code)]
mod hot;

#[global_allocator]
static ALLOCATOR: CountingAlloc = CountingAlloc::new();

const WARM_UP: u64 = 10_000;
const COUNT: u64 = 20_000;

fn allocations(body: impl FnOnce()) -> u64 {
    let before = ALLOCATOR.count();
    body();
    ALLOCATOR.count() - before
}

static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn hot_messages_and_invocations_allocate_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for bytes in [8, 128, 1024] {
        let mut channel = hot::ChannelPair::new(bytes);
        channel.round_trips(WARM_UP);
        let count = allocations(|| channel.round_trips(COUNT));
        assert_eq!(count, 0, "{COUNT} messages of {bytes} bytes each way");
    }
    for bytes in [8, PAYLOAD_INLINE_BYTES, 1024] {
        let mut invoke = hot::InvokePair::new(bytes);
        invoke.round_trips(WARM_UP);
        let count = allocations(|| invoke.round_trips(COUNT));
        assert_eq!(count, 0, "{COUNT} invocations with {bytes} bytes");
    }
}

/// A process that was created again hears of each of its senders late in their counts.
#[test]
fn a_sender_that_is_heard_late_is_cheap_to_remember() {
    const SENDERS: u64 = 1_000;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut mailbox = Mailbox::new(MailboxLimits {
        messages_max: SENDERS as usize,
        bytes_max: 1 << 20,
    });
    let put = |mailbox: &mut Mailbox, sender: u64| {
        let id = PutId {
            sender: format!("{sender:04}"),
            incarnation: 1,
            sequence: 5_000,
        };
        let message = MailMessage {
            source: String::new(),
            key: String::new(),
            payload: Default::default(),
        };
        mailbox.put(Some(id), message).0
    };
    let count = allocations(|| {
        for sender in 0..SENDERS {
            assert_eq!(put(&mut mailbox, sender), Put::Stored);
        }
    });
    assert!(
        count <= SENDERS * 4,
        "{count} for puts of {SENDERS} senders"
    );
    let count = allocations(|| drop(mailbox.image().unwrap()));
    assert!(
        count <= SENDERS,
        "{count} for an image of {SENDERS} senders"
    );
    assert_eq!(put(&mut mailbox, 7), Put::Duplicate);
}
