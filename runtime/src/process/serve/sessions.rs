//! Clients that come, go and come again: what is known of each, and which of them is forgotten.

use std::time::{Duration, Instant};

use praas_transport::{ChannelId, Incarnation};

use super::{ClientSession, Serve};
use crate::invocation::{Session, SessionImage};
use crate::swap::ImageKind;

impl Serve {
    /// What is remembered of invocations, for an image.
    pub fn sessions_image(&self, kind: ImageKind) -> Vec<SessionImage> {
        self.sessions
            .iter()
            .map(|(_, entry)| entry.session.image(entry.client, kind))
            .collect()
    }

    pub(super) fn session_open(&mut self, client: u128, channel: ChannelId) -> usize {
        self.seen += 1;
        let seen = self.seen;
        if let Some(at) = self.by_client.get(&client).copied() {
            let entry = &mut self.sessions[at];
            entry.channel = Some(channel);
            entry.channels += 1;
            entry.seen = seen;
            if let Some(timer) = entry.gone.take() {
                self.shared.timers.take_back(timer);
            }
            return at;
        }
        if self.sessions.len() >= self.shared.settings.sessions_max {
            self.session_forget();
        }
        let session = Session::new(self.shared.settings.session_inflight_max);
        let entry = ClientSession {
            client,
            session,
            channel: Some(channel),
            channels: 1,
            seen,
            after_forgotten: self.forgotten,
            gone: None,
        };
        let at = self.sessions.insert(entry);
        self.by_client.insert(client, at);
        at
    }

    /// Forgets the client that has been gone for the longest; one for which something runs only if
    /// there is no other.
    fn session_forget(&mut self) {
        let gone = self
            .sessions
            .iter()
            .filter(|(_, entry)| entry.channels == 0);
        let first = gone.min_by_key(|(_, entry)| (entry.session.is_running(), entry.seen));
        if let Some(at) = first.map(|(at, _)| at) {
            let entry = self.sessions.remove(at);
            if let Some(timer) = entry.gone {
                self.shared.timers.take_back(timer);
            }
            self.results_bytes -= entry.session.bytes();
            self.by_client.remove(&entry.client);
            self.forgotten = true;
        }
    }

    /// A caller's channel is no more. Answers go to another one of its client, if there is any.
    pub(super) fn caller_ended(&mut self, channel: ChannelId) {
        let Some(place) = self.channels.get_mut(channel.index()) else {
            return;
        };
        let Some(served) = place.take_if(|served| served.id == channel) else {
            return;
        };
        if let Some(entry) = self.sessions.get_mut(served.session) {
            entry.channels -= 1;
            self.seen += 1;
            entry.seen = self.seen;
            let patience_ms = self.shared.settings.caller_gone_cancel_ms;
            if entry.channels == 0 && patience_ms > 0 {
                let at = Instant::now() + Duration::from_millis(patience_ms);
                let (session, client) = (served.session, served.client);
                entry.gone = Some(self.shared.timers.caller_gone(at, session, client));
            }
            if entry.channel == Some(channel) {
                let mut others = self.channels.iter().flatten();
                let other = others.find(|other| other.session == served.session);
                entry.channel = other.map(|other| other.id);
            }
        }
    }

    /// Whether all is known of the invocations of this incarnation that any client may ask about.
    pub fn vouches(&self) -> bool {
        !self.forgotten
    }

    /// Whether an invocation that is not known here, and was first sent to that incarnation, cannot
    /// have run.
    pub(super) fn never_ran(&self, first: Incarnation, session: &ClientSession) -> bool {
        let known_of = first == self.shared.identity.incarnation
            || self.shared.restored_from == Some(first)
            || self.shared.vouched.contains(&first.0);
        known_of && !session.after_forgotten
    }
}
