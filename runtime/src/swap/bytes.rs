//! Little-endian integers and bounded strings, out of bytes that nobody vouches for.

use super::RejectReason;

/// Takes values off the front of bytes; every take checks what is left.
pub(super) struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    /// Bytes not yet taken.
    pub(super) fn left(&self) -> usize {
        self.left.len()
    }

    /// The next `count` bytes; `what` names them in the error.
    pub(super) fn take(
        &mut self,
        count: usize,
        what: &'static str,
    ) -> Result<&'a [u8], RejectReason> {
        let (taken, left) = self.left.split_at_checked(count).ok_or(malformed(what))?;
        self.left = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], RejectReason> {
        let (taken, left) = self.left.split_first_chunk().ok_or(malformed(what))?;
        self.left = left;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, RejectReason> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, RejectReason> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, RejectReason> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, RejectReason> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(super) fn u128(&mut self, what: &'static str) -> Result<u128, RejectReason> {
        self.array(what).map(u128::from_le_bytes)
    }

    pub(super) fn hash(&mut self, what: &'static str) -> Result<[u8; 32], RejectReason> {
        self.array(what)
    }

    /// A number of bytes or items that must fit into memory here.
    pub(super) fn length(&mut self, what: &'static str) -> Result<usize, RejectReason> {
        usize::try_from(self.u64(what)?).map_err(|_| malformed(what))
    }

    /// A string after its length of 16 bits.
    pub(super) fn name(&mut self, max: usize, what: &'static str) -> Result<String, RejectReason> {
        let length = self.u16(what)?.into();
        match length <= max {
            true => self.text(length, what),
            false => Err(malformed(what)),
        }
    }

    /// Bytes after their length of 16 bits.
    pub(super) fn bytes(
        &mut self,
        max: usize,
        what: &'static str,
    ) -> Result<&'a [u8], RejectReason> {
        let length = self.u16(what)?.into();
        match length <= max {
            true => self.take(length, what),
            false => Err(malformed(what)),
        }
    }

    /// A string of `length` bytes.
    pub(super) fn text(
        &mut self,
        length: usize,
        what: &'static str,
    ) -> Result<String, RejectReason> {
        let bytes = self.take(length, what)?;
        let text = std::str::from_utf8(bytes).map_err(|_| malformed(what))?;
        Ok(text.into())
    }

    /// Ends reading: nothing may be left.
    pub(super) fn finish(self, what: &'static str) -> Result<(), RejectReason> {
        match self.left.is_empty() {
            true => Ok(()),
            false => Err(malformed(what)),
        }
    }
}

/// The bytes of `what` are none that a writer leaves.
pub(super) fn malformed(what: &'static str) -> RejectReason {
    RejectReason::Malformed { what }
}
