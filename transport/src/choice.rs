//! Which of a peer's addresses to use: the kinds that are allowed, and the order of preference.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::address::{Address, AddressError, TransportKind};

/// Candidates that are tried at most: a peer's list is of its own making.
const CANDIDATES_MAX: usize = 16;

/// A set of transports. As a setting it is `auto`, which is all of them, one name, or several as a
/// list or with commas between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kinds(u16);

impl Kinds {
    /// None at all.
    pub const NONE: Self = Self(0);

    /// All of them.
    pub fn all() -> Self {
        TransportKind::ALL.into_iter().collect()
    }

    /// This one only.
    pub fn only(kind: TransportKind) -> Self {
        Self::NONE.with(kind)
    }

    /// These and one more.
    #[must_use]
    pub fn with(self, kind: TransportKind) -> Self {
        Self(self.0 | 1 << kind as u16)
    }

    /// These but for some.
    #[must_use]
    pub fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Whether a transport is among them.
    pub fn contains(self, kind: TransportKind) -> bool {
        self.0 & 1 << kind as u16 != 0
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The preferred ones first.
    pub fn iter(self) -> impl Iterator<Item = TransportKind> {
        TransportKind::ALL
            .into_iter()
            .filter(move |kind| self.contains(*kind))
    }
}

impl Default for Kinds {
    fn default() -> Self {
        Self::all()
    }
}

impl FromIterator<TransportKind> for Kinds {
    fn from_iter<I: IntoIterator<Item = TransportKind>>(kinds: I) -> Self {
        kinds.into_iter().fold(Self::NONE, Self::with)
    }
}

impl From<TransportKind> for Kinds {
    fn from(kind: TransportKind) -> Self {
        Self::only(kind)
    }
}

impl fmt::Display for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::all() {
            return f.write_str("auto");
        }
        for (at, kind) in self.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{kind}")?;
        }
        Ok(())
    }
}

impl FromStr for Kinds {
    type Err = AddressError;

    fn from_str(s: &str) -> Result<Self, AddressError> {
        match s.trim() {
            "" => Ok(Self::NONE),
            "auto" => Ok(Self::all()),
            names => names.split(',').map(|name| name.trim().parse()).collect(),
        }
    }
}

impl Serialize for Kinds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() && *self == Self::all() {
            true => serializer.serialize_str("auto"),
            false => self.iter().collect::<Vec<_>>().serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Kinds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.is_human_readable() {
            true => deserializer.deserialize_any(KindsVisitor),
            false => deserializer.deserialize_seq(KindsVisitor),
        }
    }
}

struct KindsVisitor;

impl<'de> Visitor<'de> for KindsVisitor {
    type Value = Kinds;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("'auto' or names of transports")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Kinds, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Kinds, A::Error> {
        let mut kinds = Kinds::NONE;
        while let Some(kind) = names.next_element()? {
            kinds = kinds.with(kind);
        }
        Ok(kinds)
    }
}

/// No candidate can be reached from here; each is named with the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no usable address: {rejected}")]
pub struct ChooseError {
    rejected: String,
}

/// A peer's addresses, sorted out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranked<'a> {
    /// What may be tried, the best first.
    pub usable: Vec<&'a Address>,
    /// What cannot be used from here, and why.
    pub rejected: Vec<(&'a Address, String)>,
}

impl Ranked<'_> {
    /// Why there is nothing to try.
    pub fn error(&self) -> ChooseError {
        let named = |(address, why): &(&Address, String)| format!("{address} ({why})");
        let rejected: Vec<String> = self.rejected.iter().map(named).collect();
        ChooseError {
            rejected: match rejected.is_empty() {
                true => "none is known".into(),
                false => rejected.join(", "),
            },
        }
    }
}

/// Sorts a peer's addresses: on the same host shared memory, then Unix sockets; else RDMA
/// where there is a device, else TCP.
pub fn addresses_rank(candidates: &[Address], allowed: Kinds) -> Ranked<'_> {
    let (mut usable, mut rejected) = (Vec::new(), Vec::new());
    for address in candidates {
        let forbidden = || {
            let why = format!("only {allowed} is allowed");
            (!allowed.contains(address.kind())).then_some(why)
        };
        match forbidden().or_else(|| unusable(address)) {
            Some(why) => rejected.push((address, why)),
            None => usable.push(address),
        }
    }
    // Those of one kind stay in the peer's order.
    usable.sort_by_key(|address| address.kind());
    if usable.len() > CANDIDATES_MAX {
        let why = format!("more than {CANDIDATES_MAX} would be tried");
        let late = usable.drain(CANDIDATES_MAX..);
        rejected.extend(late.map(|address| (address, why.clone())));
    }
    Ranked { usable, rejected }
}

/// Why an address cannot be used from here, as far as can be told without trying.
fn unusable(address: &Address) -> Option<String> {
    match address {
        Address::Verbs(_) => crate::verbs::usable().err().map(String::from),
        _ => address.elsewhere(),
    }
}

/// The best of a peer's addresses.
///
/// # Errors
/// Names every candidate with the reason why it will not do.
pub fn address_choose(candidates: &[Address], allowed: Kinds) -> Result<&Address, ChooseError> {
    let ranked = addresses_rank(candidates, allowed);
    ranked.usable.first().copied().ok_or_else(|| ranked.error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::HostId;

    #[test]
    fn the_best_is_first_and_each_rejection_has_its_reason() {
        let address = |text: &str| text.parse::<Address>().unwrap();
        let here = HostId::local();
        let tcp = address("tcp:127.0.0.1:80");
        let shm = address(&format!("shm:{here}/n"));
        let unix = address(&format!("unix:{here}/n"));
        let path = address(&format!("unix:{}//n", HostId::machine()));
        let there = address(&format!("shm:{:032x}/n", 1));
        let all = [&tcp, &path, &there, &unix, &shm].map(Clone::clone);
        let ranked = addresses_rank(&all, Kinds::all());
        assert_eq!(ranked.usable, [&shm, &path, &unix, &tcp]);
        assert_eq!(ranked.rejected.len(), 1);
        assert!(ranked.error().to_string().contains("another host"));
        let no_shm = Kinds::all().without(Kinds::only(TransportKind::Shm));
        assert_eq!(address_choose(&all, no_shm), Ok(&path));
        assert_eq!(address_choose(&all, TransportKind::Tcp.into()), Ok(&tcp));
        let error = address_choose(&[there], TransportKind::Tcp.into()).unwrap_err();
        assert!(error.to_string().contains("only tcp is allowed"), "{error}");
        assert!(address_choose(&[], Kinds::all()).is_err());
    }

    #[test]
    fn a_list_of_whatever_length_is_tried_in_part() {
        let many = vec!["tcp:127.0.0.1:80".parse().unwrap(); 1000];
        let ranked = addresses_rank(&many, Kinds::all());
        assert_eq!((ranked.usable.len(), ranked.rejected.len()), (16, 984));
    }

    #[test]
    fn sets_print_and_parse() {
        for (text, shown) in [("auto", "auto"), ("tcp, shm", "shm,tcp"), ("unix", "unix")] {
            assert_eq!(text.parse::<Kinds>().unwrap().to_string(), shown);
        }
        assert_eq!("".parse(), Ok(Kinds::NONE));
        let error = "shm,pigeon".parse::<Kinds>().unwrap_err();
        assert!(error.to_string().contains("pigeon"), "{error}");
        assert!(
            !Kinds::all()
                .without(Kinds::all())
                .contains(TransportKind::Mem)
        );
    }
}
