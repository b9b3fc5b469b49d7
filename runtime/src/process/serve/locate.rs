//! What a process tells peers that want to read its state objects: where they are, and no function
//! runs for it.

use praas_transport::{ChannelId, Ops, Role};

use super::{Serve, served_mut};
use crate::invocation::{Payload, Status};
use crate::locate::{
    AM_STATE, LOCATE_BYTES, LOCATED_FOLLOWS, LOCATED_INLINE_MAX_BYTES, LOCATED_LATER,
    LOCATED_WANTED_MAX_BYTES, LocateHeader, LocateKind, LocatedBody, locate_key,
};
use crate::process::settings::StateRead;
use crate::state::Located;

impl Serve {
    /// A peer asks where a state object is.
    pub(super) fn locate(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        tag: u64,
        header: &[u8],
        payload: &[u8],
    ) {
        let header = LocateHeader::decode(header);
        let header = header.filter(|header| header.kind == LocateKind::Locate);
        let (Some(header), Some(key)) = (header, locate_key(payload)) else {
            return self.locate_refuse(ops, channel, tag, Status::Malformed, "a state key");
        };
        if self.sealed {
            return self.locate_refuse(ops, channel, tag, Status::Quiescing, "");
        }
        let role = served_mut(&mut self.channels, channel).and_then(|served| served.role);
        if !self.shared.settings.state_read.allows(role) {
            let text = format!(
                "process '{}' does not show its state to those of this role (state_read)",
                self.shared.identity.name
            );
            return self.locate_refuse(ops, channel, tag, Status::Forbidden, &text);
        }
        match self.shared.object_hasten(key) {
            None => {}
            // It is not back from storage: who asks again later finds it.
            Some(Ok(())) => {
                let header = LocateHeader {
                    kind: LocateKind::Located,
                    flags: LOCATED_LATER,
                    status: Status::Quiescing as u16,
                };
                let (header, none) = (header.encode(), Payload::default());
                return self.answer(ops, channel, AM_STATE, tag, header, none);
            }
            Some(Err(error)) => {
                let (status, text) = (Status::FunctionError, error.to_string());
                return self.locate_refuse(ops, channel, tag, status, &text);
            }
        }
        let wanted = header.flags & LOCATE_BYTES != 0;
        // Who has the bytes asks again for the next ones.
        let objects_max = match wanted {
            true => 0,
            false => self.shared.settings.state_shown_max,
        };
        let located = self.shared.state.locate(ops, key, objects_max);
        let Some(Located { buf, meta, place }) = located else {
            let absent = LocatedBody {
                version: 0,
                place: None,
                bytes: None,
            };
            return self.locate_answer(ops, channel, tag, &absent, 0);
        };
        let inline_max = match wanted {
            true => LOCATED_WANTED_MAX_BYTES,
            false => LOCATED_INLINE_MAX_BYTES,
        };
        let inline = buf.len() <= inline_max;
        let follows = !inline && (wanted || place.is_none());
        let body = LocatedBody {
            version: meta.version,
            place: place.filter(|_| !wanted),
            bytes: inline.then_some(&*buf),
        };
        let flags = if follows { LOCATED_FOLLOWS } else { 0 };
        self.locate_answer(ops, channel, tag, &body, flags);
        if follows {
            let header = LocateHeader {
                kind: LocateKind::Bytes,
                flags: 0,
                status: 0,
            };
            let (header, object) = (header.encode(), Payload::Buf(buf));
            self.answer(ops, channel, AM_STATE, tag, header, object);
        }
    }

    fn locate_answer(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        tag: u64,
        body: &LocatedBody<'_>,
        more: u8,
    ) {
        let (flags, payload) = body.encode();
        let header = LocateHeader {
            kind: LocateKind::Located,
            flags: flags | more,
            status: Status::Ok as u16,
        };
        let payload = Payload::Buf(payload.into());
        self.answer(ops, channel, AM_STATE, tag, header.encode(), payload);
    }

    fn locate_refuse(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        tag: u64,
        status: Status,
        text: &str,
    ) {
        let header = LocateHeader {
            kind: LocateKind::Located,
            flags: 0,
            status: status as u16,
        };
        let text = Payload::Inline(text.as_bytes().into());
        self.answer(ops, channel, AM_STATE, tag, header.encode(), text);
    }
}

impl StateRead {
    /// Whether those of a role may read.
    fn allows(self, role: Option<Role>) -> bool {
        match self {
            Self::None => false,
            Self::Processes => role == Some(Role::Process),
            Self::Clients => matches!(role, Some(Role::Process | Role::Client)),
        }
    }
}
