//! What a transport has done, counted where it happens: for benchmarks, and for finding out why
//! something is slow.

/// What the RDMA connections of an endpoint have done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct VerbsCounters {
    /// Sends posted.
    pub sends: u64,
    /// Of these, copied into the work request itself.
    pub inline_sends: u64,
    /// Of all work requests, those that report that they are done.
    pub signalled: u64,
    /// Reads, writes and atomics posted.
    pub one_sided: u64,
    /// Calls that posted work requests to a queue pair: what a device is told of by a doorbell.
    pub doorbells: u64,
    /// Receives posted.
    pub receives: u64,
    /// Calls that posted receives.
    pub receive_posts: u64,
    /// Looks at a completion queue.
    pub polls: u64,
    /// Completions taken.
    pub completions: u64,
    /// Copies of payload, and of headers.
    pub copies: u64,
    /// Bytes copied.
    pub copied_bytes: u64,
    /// Sends for which there was no room.
    pub busy: u64,
    /// Registrations of memory that were made.
    pub registrations: u64,
    /// System calls of ours. What a device's driver calls besides is its own affair: a device in
    /// hardware needs none to post and poll, one in software one for each doorbell.
    pub system_calls: u64,
}

impl VerbsCounters {
    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        self.sends += other.sends;
        self.inline_sends += other.inline_sends;
        self.signalled += other.signalled;
        self.one_sided += other.one_sided;
        self.doorbells += other.doorbells;
        self.receives += other.receives;
        self.receive_posts += other.receive_posts;
        self.polls += other.polls;
        self.completions += other.completions;
        self.copies += other.copies;
        self.copied_bytes += other.copied_bytes;
        self.busy += other.busy;
        self.registrations += other.registrations;
        self.system_calls += other.system_calls;
    }
}
