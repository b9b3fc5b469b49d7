//! Modules: a table, linked in or loaded from a shared library, checked before it is believed.

use std::path::{Path, PathBuf};

use super::table::{
    ABI_VERSION, EntryFn, FLAG_IDEMPOTENT, FLAG_LONG, FLAG_SHORT, FUNCTION_TABLE_FIRST_BYTES,
    FunctionTable, MODULE_SYMBOL, ModuleTable,
};
use crate::function::FunctionLimits;

/// Functions of one module at most.
pub const MODULE_FUNCTIONS_MAX: u32 = 4096;

/// Why a module cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    /// The library cannot be loaded.
    #[error("cannot load module {path}: {error}")]
    Load {
        /// Where it is.
        path: PathBuf,
        /// The loader's words.
        error: String,
    },
    /// The library is no module.
    #[error(
        "{path} is a shared library, but no module of functions: it has no symbol \
         praas_module_v1 (write praas_runtime::module!(\"name\", [functions]) in it)"
    )]
    NoModule {
        /// Where it is.
        path: PathBuf,
    },
    /// The module is made for another version.
    #[error("module '{module}' is made for ABI version {version}, this process has {ABI_VERSION}")]
    Version {
        /// The module.
        module: String,
        /// Its version.
        version: u32,
    },
    /// A table is not what it should be.
    #[error("module '{module}' is malformed: {what}")]
    Malformed {
        /// The module, if it has a name.
        module: String,
        /// What is wrong.
        what: String,
    },
    /// Two functions have one name.
    #[error("function '{function}' of module '{module}' exists already")]
    Duplicate {
        /// The module.
        module: String,
        /// The function.
        function: String,
    },
}

/// A function of a module that was checked.
pub(crate) struct ModuleFunction {
    pub(crate) name: &'static str,
    pub(crate) flags: u64,
    pub(crate) entry: EntryFn,
    pub(crate) limits: FunctionLimits,
}

/// Loads a module. It is never unloaded: its code may be on a stack, its statics in use.
pub(crate) fn module_load(path: &Path) -> Result<&'static ModuleTable, ModuleError> {
    let path = path.to_path_buf();
    // SAFETY: loading runs the library's initialisers: whoever deploys a module trusts it as
    // they trust a program that they start.
    let library = match unsafe { libloading::Library::new(&path) } {
        Ok(library) => library,
        Err(error) => {
            return Err(ModuleError::Load {
                path,
                error: loader_text(&error),
            });
        }
    };
    type Symbol = unsafe extern "C" fn() -> *const ModuleTable;
    // SAFETY: the symbol's name carries the version of its type.
    let Ok(symbol) = (unsafe { library.get::<Symbol>(MODULE_SYMBOL) }) else {
        return Err(ModuleError::NoModule { path });
    };
    // SAFETY: as above.
    let table = unsafe { symbol().as_ref() };
    std::mem::forget(library);
    table.ok_or_else(|| malformed(&path.display().to_string(), "its table is a null pointer"))
}

/// An error of the loader with its cause, which has the loader's words.
fn loader_text(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn malformed(module: &str, what: &str) -> ModuleError {
    ModuleError::Malformed {
        module: module.into(),
        what: what.into(),
    }
}

fn text(bytes: super::table::Bytes) -> Option<&'static str> {
    // SAFETY: tables, and what they point to, stay for ever.
    let text = std::str::from_utf8(unsafe { bytes.as_slice() }).ok()?;
    (1..=255).contains(&text.len()).then_some(text)
}

/// The name and the functions of a module.
pub(crate) fn module_check(
    table: &'static ModuleTable,
) -> Result<(&'static str, Vec<ModuleFunction>), ModuleError> {
    if table.size < size_of::<ModuleTable>() {
        return Err(malformed("", "its table is too small"));
    }
    let name = text(table.name).ok_or_else(|| malformed("", "its name is not 1 to 255 UTF-8"))?;
    if table.abi_version != ABI_VERSION {
        return Err(ModuleError::Version {
            module: name.into(),
            version: table.abi_version,
        });
    }
    if table.function_count > MODULE_FUNCTIONS_MAX {
        return Err(malformed(
            name,
            &format!("{} functions", table.function_count),
        ));
    }
    if table.functions.is_null() && table.function_count > 0 {
        return Err(malformed(name, "its functions are a null pointer"));
    }
    let mut functions = Vec::with_capacity(table.function_count as usize);
    for index in 0..table.function_count as usize {
        // SAFETY: the table says that there are so many, each of them a table or null.
        let checked = unsafe { function_check(*table.functions.add(index)) };
        functions.push(checked.ok_or_else(|| {
            malformed(
                name,
                &format!("function {index} has no name, unknown flags or no code"),
            )
        })?);
    }
    Ok((name, functions))
}

/// What a function's table says, if that can be.
///
/// # Safety
/// The pointer is null or leads to a table that stays, and is as large as it says.
unsafe fn function_check(table: *const FunctionTable) -> Option<ModuleFunction> {
    if table.is_null() {
        return None;
    }
    let known = FLAG_SHORT | FLAG_LONG | FLAG_IDEMPOTENT;
    let contradiction = FLAG_SHORT | FLAG_LONG;
    // A table may end after its first version, so it is read field by field.
    // SAFETY: the caller says so; every table begins with its size.
    let size = unsafe { (&raw const (*table).size).read() };
    if size < FUNCTION_TABLE_FIRST_BYTES {
        return None;
    }
    // SAFETY: these are in every version.
    let (flags, name, entry) = unsafe { ((*table).flags, (*table).name, (*table).entry) };
    let mut limits = FunctionLimits::default();
    if size >= size_of::<FunctionTable>() {
        // SAFETY: the table says that it has them.
        let (concurrency, time_ms, memory) = unsafe {
            (
                (*table).concurrency,
                (*table).time_ms,
                (*table).memory_bytes,
            )
        };
        limits = FunctionLimits {
            concurrency_max: Some(concurrency),
            time_max_ms: Some(time_ms.into()),
            memory_max_bytes: Some(memory),
        };
    }
    let sane = flags & !known == 0 && flags & contradiction != contradiction;
    let name = text(name)?;
    sane.then_some(ModuleFunction {
        name,
        flags,
        entry,
        limits,
    })
}
