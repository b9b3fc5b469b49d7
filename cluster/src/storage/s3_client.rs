//! How the S3 client is set up: options, credentials, and hashes without C.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum, S3ConditionalPut};
use object_store::client::{
    CryptoProvider, DigestAlgorithm, DigestContext, HmacContext, Signer, SigningAlgorithm,
};
use object_store::{BackoffConfig, ClientOptions, Error, RetryConfig};
use praas_runtime::swap::{StorageError, StorageUrl, StorageUrlError};
use sha2::{Digest, Sha256};

use super::number;
use super::s3_http::Connector;

/// The largest object that one PUT may have.
pub(super) const WHOLE_LARGEST_BYTES: u64 = 5 << 30;
/// The options of a URL of kind `s3`.
const OPTIONS: &[&str] = &[
    "endpoint",
    "region",
    "virtual_host",
    "credentials",
    "whole_max_bytes",
    "part_bytes",
    "parts_parallel_max",
    "payload_hash",
    "attempts_max",
    "connect_timeout_ms",
    "timeout_ms",
];

/// Bytes that a file with credentials may have.
const CREDENTIALS_MAX_BYTES: u64 = 64 << 10;

/// What a URL says.
pub(super) struct Options {
    bucket: String,
    endpoint: Option<String>,
    region: String,
    virtual_host: bool,
    credentials: Option<String>,
    pub(super) whole_max_bytes: u64,
    pub(super) part_bytes: usize,
    pub(super) parts_parallel_max: usize,
    pub(super) attempts_max: usize,
    payload_hash: PayloadHash,
    connect_timeout: Duration,
    timeout: Duration,
}

/// By what a server knows that bytes have not changed on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PayloadHash {
    /// A checksum, which costs little, in a header that is signed.
    Crc64Nvme,
    /// The signature is over the bytes' hash.
    Sha256,
}

impl Options {
    pub(super) fn read(url: &StorageUrl) -> Result<Self, StorageUrlError> {
        url.options_check(OPTIONS)?;
        if url.authority().is_empty() {
            return Err(url.error("it names no bucket"));
        }
        let endpoint = url.option("endpoint").map(String::from);
        let tls = endpoint
            .as_ref()
            .is_none_or(|endpoint| endpoint.starts_with("https:"));
        if tls && !cfg!(feature = "tls") {
            return Err(url.error(
                "its endpoint wants TLS, which is not in this build: `cargo build --features tls`, \
                 or an endpoint with http:",
            ));
        }
        let ms =
            |name, default| number(url, name, default, 1..=3_600_000).map(Duration::from_millis);
        let payload_hash = match url.option("payload_hash") {
            None | Some("crc64nvme") => PayloadHash::Crc64Nvme,
            Some("sha256") => PayloadHash::Sha256,
            Some(other) => {
                let text = format!("payload_hash is {other}, not crc64nvme or sha256");
                return Err(url.error(text));
            }
        };
        Ok(Self {
            bucket: url.authority().into(),
            region: url.option("region").unwrap_or("us-east-1").into(),
            // Servers of one's own seldom have a name for each bucket.
            virtual_host: number(url, "virtual_host", endpoint.is_none().into(), 0..=1)? == 1,
            endpoint,
            credentials: url.option("credentials").map(String::from),
            payload_hash,
            whole_max_bytes: number(url, "whole_max_bytes", 32 << 20, 0..=WHOLE_LARGEST_BYTES)?,
            part_bytes: number(url, "part_bytes", 8 << 20, 5 << 20..=1 << 30)? as usize,
            parts_parallel_max: number(url, "parts_parallel_max", 4, 1..=64)? as usize,
            attempts_max: number(url, "attempts_max", 4, 1..=100)? as usize,
            connect_timeout: ms("connect_timeout_ms", 5_000)?,
            timeout: ms("timeout_ms", 60_000)?,
        })
    }
}

/// A client of the bucket: one that repeats requests by itself, or one that leaves it to us.
pub(super) fn client(
    url: &StorageUrl,
    options: &Options,
    repeats: bool,
) -> Result<AmazonS3, StorageError> {
    let credentials = Credentials::read(url, options.credentials.as_deref())?;
    let attempts = options.attempts_max as u32;
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: if repeats { options.attempts_max - 1 } else { 0 },
        retry_timeout: options.timeout.saturating_mul(attempts),
    };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&options.bucket)
        .with_region(&options.region)
        .with_virtual_hosted_style_request(options.virtual_host)
        .with_access_key_id(credentials.id)
        .with_secret_access_key(credentials.secret)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_retry(retry)
        .with_crypto_provider(Arc::new(Hashes))
        .with_http_connector(Connector {
            connect_timeout: options.connect_timeout,
            timeout: options.timeout,
        });
    if options.payload_hash == PayloadHash::Crc64Nvme {
        builder = builder
            .with_unsigned_payload(true)
            .with_checksum_algorithm(Checksum::CRC64NVME);
    }
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(token) = credentials.token {
        builder = builder.with_token(token);
    }
    builder
        .build()
        .map_err(|error| url.error(error.to_string()).into())
}

/// What proves to a server who asks. It is never shown.
struct Credentials {
    id: String,
    secret: String,
    token: Option<String>,
}

impl Credentials {
    /// From a file in the format of AWS's tools, section `default`, or from the environment.
    fn read(url: &StorageUrl, file: Option<&str>) -> Result<Self, StorageError> {
        let environment = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let (found, place) = match file {
            Some(file) => {
                let text = file_read(Path::new(file)).map_err(|source| StorageError::Io {
                    operation: "read credentials",
                    name: file.into(),
                    source,
                })?;
                let of = |name: &str| ini_value(&text, &name.to_ascii_lowercase());
                (KEYS.map(of), file)
            }
            None => (KEYS.map(environment), "the environment"),
        };
        let [id, secret, token] = found;
        let (Some(id), Some(secret)) = (id, secret) else {
            let what = format!("there are no credentials in {place}: docs/storage.md");
            return Err(url.error(what).into());
        };
        Ok(Self { id, secret, token })
    }
}

const KEYS: [&str; 3] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
];

fn file_read(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(CREDENTIALS_MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// The value of a key in the section `default`, or before any section.
fn ini_value(text: &str, key: &str) -> Option<String> {
    let mut ours = true;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            ours = section.trim_end_matches(']').trim() == "default";
        } else if let Some((name, value)) = line.split_once('=')
            && ours
            && name.trim() == key
        {
            return Some(value.trim().into());
        }
    }
    None
}

/// Hashes for signatures, by the crates that tickets use, too.
#[derive(Debug)]
struct Hashes;

impl CryptoProvider for Hashes {
    fn digest(&self, algorithm: DigestAlgorithm) -> object_store::Result<Box<dyn DigestContext>> {
        match algorithm {
            DigestAlgorithm::Sha256 => Ok(Box::new(Hash(Sha256::new(), Vec::new()))),
            other => Err(unknown(format!("{other:?}"))),
        }
    }

    fn hmac(
        &self,
        algorithm: DigestAlgorithm,
        secret: &[u8],
    ) -> object_store::Result<Box<dyn HmacContext>> {
        let mac = Hmac::<Sha256>::new_from_slice(secret);
        match (algorithm, mac) {
            (DigestAlgorithm::Sha256, Ok(mac)) => Ok(Box::new(Hash(mac, Vec::new()))),
            (other, _) => Err(unknown(format!("HMAC {other:?}"))),
        }
    }

    fn sign(&self, _: SigningAlgorithm, _: &[u8]) -> object_store::Result<Box<dyn Signer>> {
        Err(unknown("signing with private keys".into()))
    }
}

fn unknown(operation: String) -> Error {
    Error::NotImplemented {
        operation,
        implementer: "praas".into(),
    }
}

/// A hash under way, and its value.
struct Hash<H>(H, Vec<u8>);

impl DigestContext for Hash<Sha256> {
    fn update(&mut self, data: &[u8]) {
        Digest::update(&mut self.0, data);
    }

    fn finish(&mut self) -> object_store::Result<&[u8]> {
        self.1 = self.0.clone().finalize().to_vec();
        Ok(&self.1)
    }
}

impl HmacContext for Hash<Hmac<Sha256>> {
    fn update(&mut self, data: &[u8]) {
        Mac::update(&mut self.0, data);
    }

    fn finish(&mut self) -> object_store::Result<&[u8]> {
        self.1 = self.0.clone().finalize().into_bytes().to_vec();
        Ok(&self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_in_the_default_section() {
        let text = "[other]\naws_access_key_id = no\n[default]\n# x\naws_access_key_id = id \n";
        assert_eq!(ini_value(text, "aws_access_key_id").as_deref(), Some("id"));
        assert_eq!(ini_value(text, "aws_session_token"), None);
        assert_eq!(ini_value("a=1=2", "a").as_deref(), Some("1=2"));
    }

    #[test]
    fn hashes_are_what_they_should_be() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let mut digest = Hashes.digest(DigestAlgorithm::Sha256).unwrap();
        digest.update(b"abc");
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(digest.finish().unwrap()), abc);
        // RFC 4231, test case 2.
        let mut mac = Hashes.hmac(DigestAlgorithm::Sha256, b"Jefe").unwrap();
        mac.update(b"what do ya want for nothing?");
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex(mac.finish().unwrap()), expected);
    }

    #[test]
    fn options_are_checked_and_secrets_not_shown() {
        let refused = |url: &str| {
            let url: StorageUrl = url.parse().unwrap();
            let options = Options::read(&url).err();
            options.map_or(String::new(), |error| error.to_string())
        };
        let http = "endpoint=http://127.0.0.1:1";
        assert!(refused("s3:///x").contains("no bucket"));
        assert!(refused(&format!("s3://b?{http}&parts=2")).contains("no option parts"));
        assert!(refused(&format!("s3://b?{http}&part_bytes=5")).contains("part_bytes is 5"));
        assert!(
            refused(&format!("s3://b?{http}&payload_hash=md5")).contains("payload_hash is md5")
        );
        if !cfg!(feature = "tls") {
            assert!(refused("s3://b").contains("TLS"));
        }
        let url: StorageUrl = format!("s3://b?{http}&credentials=/none").parse().unwrap();
        let options = Options::read(&url).unwrap();
        let error = client(&url, &options, true).err().unwrap().to_string();
        assert!(error.contains("/none: cannot read credentials"), "{error}");
    }
}
