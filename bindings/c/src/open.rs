//! How a client gets in: a ticket, and the directory of an agent.

use std::ffi::{CString, c_char};
use std::path::{Path, PathBuf};

use praas_runtime::client::{Client, ClientConfig, Directory};
use serde_json::Value;

use super::{Failure, OPEN_ERROR, caught, praas_client, text_c, text_optional, write};
use praas_runtime::abi::code;

/// Bytes of the largest file that is read.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// How to get in, as C says it.
#[repr(C)]
#[allow(non_camel_case_types)]
#[derive(Debug, Clone, Copy)]
pub struct praas_client_options {
    size: usize,
    ticket_path: *const c_char,
    ticket: *const c_char,
    run_dir: *const c_char,
    directory: *const c_char,
    transports: *const c_char,
    wait: u32,
}

/// Makes a client; see `praas_client.h`.
///
/// # Safety
/// As `praas_client.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_client_open(
    options: *const praas_client_options,
    client: *mut *mut praas_client,
) -> i32 {
    // SAFETY: the caller says so.
    unsafe { write(client, std::ptr::null_mut) };
    if client.is_null() {
        return code::BAD_ARGUMENT;
    }
    let opened = caught(|| {
        // SAFETY: the caller says so.
        let opened = unsafe { open(options) }?;
        let opened = Box::new(praas_client {
            client: opened,
            error: CString::default(),
        });
        // SAFETY: the caller says so.
        unsafe { write(client, || Box::into_raw(opened)) };
        Ok(())
    });
    match opened {
        Ok(()) => code::OK,
        Err(failure) => {
            OPEN_ERROR.with(|error| *error.borrow_mut() = text_c(&failure.text));
            failure.code
        }
    }
}

/// Closes a client; see `praas_client.h`.
///
/// # Safety
/// As `praas_client.h` says: the client is used no more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn praas_client_close(client: *mut praas_client) {
    if !client.is_null() {
        // SAFETY: it is a box of `praas_client_open`, and is given back once.
        let client = unsafe { Box::from_raw(client) };
        // There is nobody left to tell.
        let _ = caught(|| {
            client.client.close(std::time::Duration::from_millis(10));
            Ok(())
        });
    }
}

/// # Safety
/// As `praas_client.h` says.
unsafe fn open(options: *const praas_client_options) -> Result<Client, Failure> {
    // SAFETY: the caller says so.
    let options = unsafe { options.as_ref() }.ok_or_else(|| Failure::bad("no options"))?;
    if options.size < size_of::<praas_client_options>() {
        return Err(Failure::bad(format!(
            "options of {} bytes: begin with PRAAS_CLIENT_OPTIONS",
            options.size
        )));
    }
    // SAFETY: the caller says so, here and below.
    let field = |text, what| unsafe { text_optional(text, what) };
    let ticket = match (
        field(options.ticket, "ticket")?,
        field(options.ticket_path, "ticket_path")?,
    ) {
        (Some(text), _) => text.to_owned(),
        (None, Some(path)) => file_read(Path::new(path))?,
        (None, None) => return Err(Failure::bad("give a ticket or a ticket_path")),
    };
    let addresses = match field(options.directory, "directory")? {
        Some(text) => text.split(',').map(|text| text.trim().to_owned()).collect(),
        None => agent_addresses(field(options.run_dir, "run_dir")?)?,
    };
    let mut parsed = Vec::new();
    for address in addresses {
        match address.parse() {
            Ok(address) => parsed.push(address),
            Err(error) => return Err(Failure::bad(format!("address '{address}': {error}"))),
        }
    }
    let ticket = json(&ticket, "the ticket")?;
    let credential = ticket.get("credential").cloned().unwrap_or(ticket);
    let credential = match serde_json::from_value(credential) {
        Ok(credential) => credential,
        Err(error) => return Err(Failure::bad(format!("the ticket: {error}"))),
    };
    let mut config = ClientConfig::new(Directory::Agent(parsed), credential);
    if let Some(text) = field(options.transports, "transports")? {
        match text.parse() {
            Ok(kinds) => config.transports = kinds,
            Err(error) => return Err(Failure::bad(format!("transports '{text}': {error}"))),
        }
    }
    let wait = ["Adaptive", "Warm", "Hot"].get(options.wait as usize);
    let wait = wait.ok_or_else(|| Failure::bad(format!("wait {} is unknown", options.wait)))?;
    if let Ok(wait) = serde_json::from_value(Value::from(*wait)) {
        config.wait = wait;
    }
    Client::new(config).map_err(|error| Failure::bad(error.to_string()))
}

/// The addresses in the file that an agent writes into its run directory.
fn agent_addresses(run_dir: Option<&str>) -> Result<Vec<String>, Failure> {
    let environment = || std::env::var_os("PRAAS_RUN_DIR").filter(|path| !path.is_empty());
    let run_dir = run_dir.map(PathBuf::from);
    let run_dir = run_dir
        .or_else(|| environment().map(PathBuf::from))
        .ok_or_else(|| Failure::bad("give a directory or a run_dir, or set PRAAS_RUN_DIR"))?;
    let path = run_dir.join("agent.addr");
    let agent = json(&file_read(&path)?, "agent.addr")?;
    let addresses = agent.get("directory").and_then(Value::as_array);
    let addresses = addresses.into_iter().flatten().filter_map(Value::as_str);
    let addresses: Vec<String> = addresses.map(str::to_owned).collect();
    match addresses.is_empty() {
        false => Ok(addresses),
        true => Err(Failure::bad(format!("{} names no address", path.display()))),
    }
}

fn json(text: &str, what: &str) -> Result<Value, Failure> {
    serde_json::from_str(text).map_err(|error| Failure::bad(format!("{what}: {error}")))
}

fn file_read(path: &Path) -> Result<String, Failure> {
    use std::io::Read;
    let mut text = String::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(FILE_MAX_BYTES).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(text),
        Err(error) => {
            let text = format!("cannot read {}: {error}", path.display());
            Err(Failure::not_found(text))
        }
    }
}
