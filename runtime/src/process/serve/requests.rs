//! Requests become jobs, by the names and numbers that their channel has told, and end early if
//! nobody waits for them any more.

use std::sync::Arc;
use std::time::Duration;

use praas_transport::clock;
use praas_transport::{ChannelId, Flow, Ops};

use super::{Callee, ReadyJob, Serve, served_mut};
use crate::invocation::{
    AM_INVOCATION, Admit, CHANNEL_FUNCTIONS_MAX, Kind, Payload, RequestHeader, Status,
    passed_decode, short_header,
};

/// When a job that was on its way to a worker is looked for again, to be cancelled.
const CANCEL_AGAIN: Duration = Duration::from_millis(1);

impl Serve {
    #[inline]
    pub(super) fn request(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        sequence: u64,
        header: &[u8],
        input: Payload,
    ) -> Flow {
        let Some(served) = served_mut(&mut self.channels, channel) else {
            return Flow::Continue;
        };
        let Some(header) = RequestHeader::decode(header) else {
            return self.refuse(
                ops,
                channel,
                sequence,
                Status::Malformed,
                "a request's header",
            );
        };
        let (session, client) = (served.session, served.client);
        let callee = served.functions.get(header.function as usize).copied();
        let callee = callee.unwrap_or(Callee::Unknown);
        let entry = &self.sessions[session];
        if let Some(first) = header.first
            && !entry.session.knows(sequence)
            && !self.never_ran(first, entry)
            && !self.shared.idempotent(callee)
        {
            return self.refuse(ops, channel, sequence, Status::OutcomeUnknown, "");
        }
        let entry = &mut self.sessions[session];
        let job = self.next_job;
        let before = entry.session.bytes();
        let admit = match self.quiescing && !entry.session.knows(sequence) {
            true => return self.refuse(ops, channel, sequence, Status::Quiescing, ""),
            false => entry.session.admit(sequence, header.acked_delta, job),
        };
        self.results_bytes = self.results_bytes + entry.session.bytes() - before;
        match admit {
            Admit::Run => {}
            Admit::Running => return Flow::Continue,
            Admit::Recorded(status, payload) => {
                let header = short_header(Kind::Reply, status as u16, 0);
                self.answer(ops, channel, AM_INVOCATION, sequence, header, payload);
                return Flow::Continue;
            }
            Admit::Expired => {
                return self.refuse(ops, channel, sequence, Status::ResultExpired, "");
            }
            Admit::Full => {
                let text = "too many invocations of this client (session_inflight_max)";
                return self.refuse(ops, channel, sequence, Status::Exhausted, text);
            }
        }
        self.next_job += 1;
        if callee == Callee::Unknown {
            let none = Payload::default();
            self.reply(
                ops,
                session,
                client,
                sequence,
                Status::UnknownFunction,
                none,
            );
            return Flow::Continue;
        }
        let deadline = match header.deadline_us {
            0 => None,
            us => Some(clock::now() + Duration::from_micros(us.into())),
        };
        let job = ReadyJob {
            job,
            callee,
            session: session as u32,
            client,
            sequence,
            input,
            deadline,
            one_way: header.one_way,
            inside: false,
        };
        self.ready.push_back(job);
        Flow::Stop
    }

    pub(super) fn intern(&mut self, ops: &mut Ops, channel: ChannelId, number: u64, name: &[u8]) {
        let shared = Arc::clone(&self.shared);
        let Some(served) = served_mut(&mut self.channels, channel) else {
            return;
        };
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        if number >= CHANNEL_FUNCTIONS_MAX || name.len() > 255 {
            tracing::warn!(
                peer = served.source,
                "closed: it numbers functions out of range"
            );
            self.caller_close(ops, channel);
            return;
        }
        if served.functions.len() <= number {
            served.functions.resize(number + 1, Callee::Unknown);
        }
        served.functions[number] = match std::str::from_utf8(name) {
            Ok(name) => shared.callee(name),
            Err(_) => Callee::Unknown,
        };
    }

    pub(super) fn passed(&mut self, ops: &mut Ops, channel: ChannelId, base: u64, listed: &[u8]) {
        let Some(served) = served_mut(&mut self.channels, channel) else {
            return;
        };
        let session = &mut self.sessions[served.session].session;
        let before = session.bytes();
        if passed_decode(listed).is_none_or(|listed| !session.pass(base, &listed)) {
            tracing::warn!(peer = served.source, "closed: it passes what it never sent");
            self.caller_close(ops, channel);
            return;
        }
        self.results_bytes = self.results_bytes + session.bytes() - before;
    }

    pub(super) fn cancel(&mut self, ops: &mut Ops, channel: ChannelId, sequence: u64) {
        let Some(served) = served_mut(&mut self.channels, channel) else {
            return;
        };
        let session = served.session;
        if let Some(job) = self.sessions[session].session.job(sequence) {
            self.job_cancel(ops, session, job);
        }
    }

    /// Cancels a job, whether it runs or waits.
    fn job_cancel(&mut self, ops: &mut Ops, session: usize, job: u64) {
        let queued = self.shared.jobs_take(|queued| queued.job == job);
        let found = !queued.is_empty() || self.shared.job_cancel(job);
        for queued in queued {
            self.job_answer(ops, &queued, Status::Cancelled, Payload::default());
        }
        if !found {
            // On its way from the queue to a worker.
            let client = self.sessions[session].client;
            let at = clock::now() + CANCEL_AGAIN;
            self.shared.timers.cancel_again(at, session, client, job);
        }
    }

    /// Cancels a job that was on its way before, unless it has ended.
    pub fn cancel_again(&mut self, ops: &mut Ops, session: usize, client: u128, job: u64) {
        let entry = self.sessions.get(session);
        let entry = entry.filter(|entry| entry.client == client);
        if entry.is_some_and(|entry| entry.session.jobs().any(|running| running == job)) {
            self.job_cancel(ops, session, job);
        }
    }

    /// Cancels what a client has asked for that has not come back.
    pub fn orphans_cancel(&mut self, ops: &mut Ops, session: usize, client: u128) {
        let entry = self.sessions.get(session);
        let entry = entry.filter(|entry| entry.client == client && entry.channels == 0);
        let jobs: Vec<u64> = entry
            .into_iter()
            .flat_map(|entry| entry.session.jobs())
            .collect();
        if !jobs.is_empty() {
            tracing::info!(
                cancelled = jobs.len(),
                "a caller is gone: what it asked for is cancelled (caller_gone_cancel_ms)"
            );
        }
        for job in jobs {
            self.job_cancel(ops, session, job);
        }
    }
}
