//! Messages that callers put into the mailbox.

use praas_transport::{ChannelId, Ops};

use super::{Serve, served_mut};
use crate::invocation::{AM_MAILBOX, Kind, Payload, Status, put_split, short_header};
use crate::mailbox::{MailMessage, Put, PutId};

impl Serve {
    pub(super) fn put(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        sequence: u64,
        header: &[u8],
        payload: Payload,
    ) {
        let status = self.put_store(channel, sequence, header, payload);
        let header = short_header(Kind::PutAck, status as u16, 0);
        self.answer(
            ops,
            channel,
            AM_MAILBOX,
            sequence,
            header,
            Payload::default(),
        );
    }

    fn put_store(
        &mut self,
        channel: ChannelId,
        sequence: u64,
        header: &[u8],
        payload: Payload,
    ) -> Status {
        let Some(served) = served_mut(&mut self.channels, channel) else {
            return Status::Malformed;
        };
        // If the swap fails, none of a caller's messages comes in before one that was turned away.
        served.puts_refused |= self.sealed;
        if served.puts_refused {
            return Status::Quiescing;
        }
        let Some((key, payload)) = put_split(header, payload) else {
            return Status::Malformed;
        };
        let sender = served.source.clone();
        let id = PutId {
            sender: sender.clone(),
            incarnation: served.incarnation,
            sequence,
        };
        let message = MailMessage {
            source: sender,
            key,
            payload,
        };
        match self.shared.mail_put(Some(id), message) {
            Put::Stored | Put::Duplicate => Status::Ok,
            Put::Full => Status::MailboxFull,
        }
    }
}
