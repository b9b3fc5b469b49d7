//! API tokens: made, hashed, and looked up on every request.

use std::sync::{PoisonError, RwLock};

use crate::api::TokenRole;
use crate::error::{ErrorKind, Failure};
use crate::files::hex_encode;
use crate::store::{Change, TokenRecord};

/// What every token begins with, so that leaked ones are found by their look.
const PREFIX: &str = "praas_";
/// Bytes that a token may have; a longer one is not even hashed.
const TOKEN_MAX_BYTES: usize = 256;

/// A new token's text, of 256 random bits.
pub(crate) fn token_generate() -> Result<String, Failure> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| {
        let detail = format!("no random bytes from the system: {error}");
        Failure::new(ErrorKind::Unavailable, detail)
    })?;
    Ok(format!("{PREFIX}{}", hex_encode(&bytes)))
}

/// What is stored of a token. It has 256 random bits, so that a fast hash is enough.
pub(crate) fn token_hash(token: &str) -> [u8; 32] {
    *blake3::hash(token.as_bytes()).as_bytes()
}

/// The tokens that are good now. The core writes it after each commit; the server reads it.
#[derive(Debug, Default)]
pub(crate) struct TokenTable {
    tokens: RwLock<Vec<(blake3::Hash, TokenRole)>>,
}

impl TokenTable {
    pub(crate) fn insert(&self, record: &TokenRecord) {
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        tokens.push((blake3::Hash::from_bytes(record.hash), record.role()));
    }

    pub(crate) fn apply(&self, change: &Change) {
        match change {
            Change::Token(record) => self.insert(record),
            Change::TokenRemoved(hash) => {
                let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
                let hash = blake3::Hash::from_bytes(*hash);
                tokens.retain(|(of, _)| *of != hash);
            }
            _ => {}
        }
    }

    /// What `token` allows. Hashes are compared in constant time, all of them.
    pub(crate) fn role(&self, token: &str) -> Option<TokenRole> {
        if token.len() > TOKEN_MAX_BYTES {
            return None;
        }
        let hash = blake3::hash(token.as_bytes());
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for (of, role) in tokens.iter() {
            if *of == hash {
                found = Some(role);
            }
        }
        found.cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_until_it_is_removed() {
        let table = TokenTable::default();
        let token = token_generate().unwrap();
        let record = TokenRecord {
            hash: token_hash(&token),
            application: Some("a".into()),
            label: String::new(),
            created_unix_ms: 0,
        };
        assert_eq!(table.role(&token), None);
        table.apply(&Change::Token(record.clone()));
        assert_eq!(table.role(&token), Some(TokenRole::Application("a".into())));
        assert_eq!(table.role(&token[1..]), None);
        assert_eq!(table.role(&"x".repeat(1 << 20)), None);
        table.apply(&Change::TokenRemoved(record.hash));
        assert_eq!(table.role(&token), None);
    }
}
