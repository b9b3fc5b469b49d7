//! Bytes between processes: endpoints, channels, memory regions, and their backends.
//!
//! An [`Endpoint`] listens and connects over several transports at once; each connected peer is a
//! channel. A channel carries messages, small ones eagerly and large ones by rendezvous, whole,
//! once and in order, or reports its end. See `docs/wire.md` for the bytes and `ARCHITECTURE.md`
//! for the way of a message.

pub mod address;
mod backend;
pub mod buf;
mod choice;
pub mod clock;
pub mod config;
pub mod counters;
mod endpoint;
pub mod fault;
mod mem;
pub mod one_sided;
mod shm;
mod stats_page;
mod stream;
pub mod sync;
mod tcp;
pub mod ticket;
mod unix;
mod verbs;
pub mod wire;

pub use address::{Address, HostId, TransportKind};
pub use backend::Posted;
pub use buf::{Buf, BufGrow, BufMut, BufPool, PoolExhausted};
pub use choice::{ChooseError, Kinds, Ranked, address_choose, addresses_rank};
pub use config::TransportConfig;
pub use counters::VerbsCounters;
#[doc(hidden)]
pub use endpoint::fuzz_channel;
pub use endpoint::{
    ChannelId, ChannelInfo, CloseReason, Dial, Disposition, Endpoint, EndpointTimes, Flow, Handler,
    Incoming, IncomingId, LargeMessage, Listen, Message, OneSidedDone, Ops, PostedBuf, PostedGet,
    PostedList, SendError, SendFailure, TimesReader, TransportError, WaitMode, Waker,
};
pub use one_sided::{Access, MemoryRegion, OneSidedError, RegionError, RemoteKey};
pub use shm::{bare, peer_ids, shm_describe};
#[doc(hidden)]
pub use shm::{fuzz_shm, fuzz_socket};
pub use stats_page::{StatsPage, StatsWord};
pub use ticket::{Authenticator, Credential, Keyring, RefuseReason, Role, Secret, Ticket};
pub use unix::UnixPlace;
#[doc(hidden)]
pub use verbs::fuzz_verbs;
pub use verbs::{RdmaError, rdma_address, rdma_describe};
pub use wire::{Identity, Incarnation, PeerIdentity};
