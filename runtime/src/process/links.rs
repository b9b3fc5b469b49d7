//! The channels between this process and others: opened when they are first needed, over the best
//! transport of each pair.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use praas_transport::{ChannelId, ChannelInfo};
use serde::{Deserialize, Serialize};

/// A channel to or from another process of the application.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LinkInfo {
    /// The other process.
    pub process: String,
    /// Its incarnation.
    pub incarnation: u64,
    /// The transport, by its name: shm, unix, verbs, tcp.
    pub transport: String,
    /// Whether this process opened it, for calls of its functions.
    pub dialled: bool,
}

/// The channels that are open.
#[derive(Debug, Default)]
pub(super) struct Links {
    open: Mutex<HashMap<ChannelId, LinkInfo>>,
}

impl Links {
    /// A channel is open; those of clients and of the directory are not told of.
    pub fn opened(&self, channel: ChannelId, info: &ChannelInfo) {
        if info.peer.name.is_empty() || info.peer.incarnation.0 == 0 {
            return;
        }
        let link = LinkInfo {
            process: info.peer.name.to_string(),
            incarnation: info.peer.incarnation.0,
            transport: info.kind.to_string(),
            dialled: info.dialled,
        };
        self.lock().insert(channel, link);
    }

    /// A channel has ended.
    pub fn closed(&self, channel: ChannelId) {
        self.lock().remove(&channel);
    }

    /// All, by the names of the other processes.
    pub fn list(&self) -> Vec<LinkInfo> {
        let mut links: Vec<_> = self.lock().values().cloned().collect();
        links.sort_unstable();
        links
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ChannelId, LinkInfo>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
