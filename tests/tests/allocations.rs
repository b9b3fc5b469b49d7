//! Nothing is allocated for a small message or invocation once both sides are warm.
//!
//! The count is of the whole OS process, both sides of everything, so this file has one test.

use praas_runtime::invocation::PAYLOAD_INLINE_BYTES;
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

#[test]
fn hot_messages_and_invocations_allocate_nothing() {
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
