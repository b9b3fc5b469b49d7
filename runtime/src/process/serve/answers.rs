//! What a process answers: recorded first, then sent, or kept until there is room.

use praas_transport::sync::atomic::Ordering;
use praas_transport::{ChannelId, Flow, Ops, Posted, PostedBuf};

use super::{ReadyJob, Serve, served_mut};
use crate::invocation::{AM_INVOCATION, Kind, Payload, Status, short_header};

/// Answers that wait for room on one channel at most.
const BACKLOG_MAX: usize = 1 << 16;

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) am: u8,
    pub(super) tag: u64,
    pub(super) header: [u8; 8],
    pub(super) payload: Payload,
}

impl Serve {
    /// Whether answers still wait for room.
    pub fn backlogged(&self) -> bool {
        self.channels
            .iter()
            .flatten()
            .any(|served| !served.backlog.is_empty())
    }

    /// Records how an invocation ended and answers it.
    #[inline]
    pub fn reply(
        &mut self,
        ops: &mut Ops,
        session: usize,
        client: u128,
        sequence: u64,
        status: Status,
        payload: Payload,
    ) {
        let Some(entry) = self.sessions.get_mut(session) else {
            return;
        };
        if entry.client != client {
            return;
        }
        let before = entry.session.bytes();
        let channel = entry.channel;
        match status {
            Status::Quiescing => entry.session.withdraw(sequence),
            _ => entry.session.finish(sequence, status, payload.clone()),
        }
        self.results_bytes = self.results_bytes + entry.session.bytes() - before;
        if self.results_bytes > self.shared.settings.results_max_bytes {
            self.results_trim();
        }
        if let Some(channel) = channel {
            let header = short_header(Kind::Reply, status as u16, 0);
            self.answer(ops, channel, AM_INVOCATION, sequence, header, payload);
        }
    }

    /// Answers a job that has not run.
    pub fn job_answer(&mut self, ops: &mut Ops, job: &ReadyJob, status: Status, payload: Payload) {
        if job.is_own() {
            self.shared.one_way_failed.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                ?status,
                "a one-way invocation of this process did not begin"
            );
            return;
        }
        let session = job.session as usize;
        self.reply(ops, session, job.client, job.sequence, status, payload);
    }

    /// Sends an answer, or keeps it until there is room.
    #[inline]
    pub(super) fn answer(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        am: u8,
        tag: u64,
        header: [u8; 8],
        payload: Payload,
    ) {
        let Some(served) = served_mut(&mut self.channels, channel) else {
            return;
        };
        let reply = Reply {
            am,
            tag,
            header,
            payload,
        };
        if served.backlog.is_empty() {
            if let Some(reply) = reply_send(ops, channel, reply) {
                served.backlog.push_back(reply);
            }
        } else if served.backlog.len() < BACKLOG_MAX {
            served.backlog.push_back(reply);
        } else {
            // It asks and never listens; what it asked is recorded, should it come back.
            let peer = served.source.clone();
            tracing::warn!(%peer, "closed: it does not take its answers");
            self.caller_close(ops, channel);
        }
    }

    /// Answers a request that leaves no trace.
    pub(super) fn refuse(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        sequence: u64,
        status: Status,
        text: &str,
    ) -> Flow {
        let header = short_header(Kind::Reply, status as u16, 0);
        let text = Payload::Inline(text.as_bytes().into());
        self.answer(ops, channel, AM_INVOCATION, sequence, header, text);
        Flow::Continue
    }

    /// Results are above their limit: the large ones go first, then all.
    fn results_trim(&mut self) {
        for keep in [4096, 0] {
            for (_, entry) in &mut self.sessions {
                entry.session.forget_large(keep);
            }
            self.results_bytes = self
                .sessions
                .iter()
                .map(|(_, entry)| entry.session.bytes())
                .sum();
            if self.results_bytes <= self.shared.settings.results_max_bytes {
                return;
            }
        }
    }
}

/// Sends an answer; gives it back if there is no room.
#[inline]
pub(super) fn reply_send(ops: &mut Ops, channel: ChannelId, reply: Reply) -> Option<Reply> {
    let Reply {
        am,
        tag,
        header,
        payload,
    } = reply;
    match payload {
        Payload::Buf(buf) if buf.len() > ops.eager_max(channel) => {
            match ops.send_buf(channel, am, tag, &header, buf, 0) {
                Ok(PostedBuf::Done(_) | PostedBuf::Pending) => None,
                Ok(PostedBuf::Busy(buf)) => Some(Reply {
                    am,
                    tag,
                    header,
                    payload: Payload::Buf(buf),
                }),
                Err(error) => reply_failed(ops, channel, am, tag, &error),
            }
        }
        payload => match ops.send(channel, am, tag, &header, &[&payload]) {
            Ok(Posted::Done) => None,
            Ok(Posted::Busy) => Some(Reply {
                am,
                tag,
                header,
                payload,
            }),
            Err(error) => reply_failed(ops, channel, am, tag, &error),
        },
    }
}

/// An answer cannot be sent: its channel has ended, or it is above the limit, which its caller
/// hears.
fn reply_failed(
    ops: &mut Ops,
    channel: ChannelId,
    am: u8,
    tag: u64,
    error: &praas_transport::SendError,
) -> Option<Reply> {
    if let praas_transport::SendError::TooLarge { .. } = error {
        let header = short_header(Kind::Reply, Status::TooLarge as u16, 0);
        let payload = Payload::Inline(error.to_string().as_bytes().into());
        return reply_send(
            ops,
            channel,
            Reply {
                am,
                tag,
                header,
                payload,
            },
        );
    }
    None
}
