//! What devices report, in our words.

use std::ffi::c_uint;

use super::sys;

/// Why an RDMA channel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RdmaError {
    /// Packets went unanswered for as long as `verbs_dead_after_ms` allows: the peer's port is
    /// down, its host is gone, or there is no way to it any more.
    #[error("the peer's port does not answer")]
    Unreachable,
    /// The peer had no receive posted for longer than a peer in order can have none.
    #[error("the peer has no room for what it gave credit for")]
    NotReady,
    /// The peer's device refused access to memory.
    #[error("the peer refused access to its memory")]
    RemoteAccess,
    /// The peer's device could not do what it was asked to.
    #[error("the peer's device failed")]
    RemoteDevice,
    /// Our queue pair was ended, by the device or by what the peer sent.
    #[error("the queue pair was ended")]
    Flushed,
    /// Our own device refused what we posted.
    #[error("the device failed (completion status {status}, vendor's code {vendor:#x})")]
    Device {
        /// As the header of libibverbs numbers them.
        status: u32,
        /// What the vendor says of it.
        vendor: u32,
    },
    /// Nothing of the device works any more.
    #[error("the device has failed altogether")]
    DeviceLost,
}

impl RdmaError {
    /// What a completion that is no success means.
    pub(super) fn of_completion(status: c_uint, vendor: u32) -> Self {
        match status {
            sys::WC_RETRY_EXC_ERR => Self::Unreachable,
            sys::WC_RNR_RETRY_EXC_ERR => Self::NotReady,
            sys::WC_REM_ACCESS_ERR => Self::RemoteAccess,
            sys::WC_REM_OP_ERR | sys::WC_REM_INV_REQ_ERR => Self::RemoteDevice,
            sys::WC_WR_FLUSH_ERR => Self::Flushed,
            _ => Self::Device { status, vendor },
        }
    }

    /// Which of two reports of one queue pair's end says more: all but the first work request are
    /// only flushed.
    pub(super) fn better(self, other: Self) -> Self {
        match self {
            Self::Flushed => other,
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_are_told_in_our_words() {
        let told = |status| RdmaError::of_completion(status, 7);
        assert_eq!(told(12), RdmaError::Unreachable);
        assert_eq!(told(13), RdmaError::NotReady);
        assert_eq!(told(10), RdmaError::RemoteAccess);
        assert_eq!(told(11), RdmaError::RemoteDevice);
        assert_eq!(told(9), RdmaError::RemoteDevice);
        assert_eq!(told(5), RdmaError::Flushed);
        for status in [1, 2, 3, 4, 6, 7, 8, 14, 19, 21, 99] {
            assert_eq!(told(status), RdmaError::Device { status, vendor: 7 });
        }
        let first = RdmaError::Flushed.better(RdmaError::Unreachable);
        assert_eq!(first.better(RdmaError::Flushed), RdmaError::Unreachable);
    }
}
