//! libibverbs, loaded at run time: one binary runs on nodes with and without it.
//!
//! What posts and polls goes through the context's table, as in the header's inline functions; the
//! rest are symbols of the library, each in the version that the header's callers link to.

use std::error::Error;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::sys::{
    AsyncEvent, CompChannel, Context, Cq, Device, DeviceAttr, Mr, Pd, PortAttr, Qp, QpAttr,
    QpInitAttr, Srq, SrqInitAttr, VerbsContext,
};

/// The library's file, which is looked for where the loader looks for all libraries.
const LIBRARY: &str = "libibverbs.so.1";

macro_rules! functions {
    ($($field:ident = $symbol:literal @ $version:literal: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The functions of the library that we call.
        pub(crate) struct Lib {
            $(pub(crate) $field: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl Lib {
            /// Looks every function up.
            fn resolve(library: NonNull<c_void>) -> Result<Self, String> {
                Ok(Self {
                    $($field: {
                        let found = symbol_find(library, $symbol, $version)?;
                        // SAFETY: the type is the one that the library's header declares for this
                        // symbol in this version, which its ABI keeps.
                        unsafe {
                            std::mem::transmute::<
                                NonNull<c_void>,
                                unsafe extern "C" fn($($arg),*) $(-> $ret)?,
                            >(found)
                        }
                    },)*
                })
            }
        }
    };
}

functions! {
    device_list = "ibv_get_device_list" @ "IBVERBS_1.1": fn(*mut c_int) -> *mut *mut Device;
    device_list_free = "ibv_free_device_list" @ "IBVERBS_1.1": fn(*mut *mut Device);
    device_name = "ibv_get_device_name" @ "IBVERBS_1.1": fn(*mut Device) -> *const c_char;
    device_open = "ibv_open_device" @ "IBVERBS_1.1": fn(*mut Device) -> *mut Context;
    device_close = "ibv_close_device" @ "IBVERBS_1.1": fn(*mut Context) -> c_int;
    device_query = "ibv_query_device" @ "IBVERBS_1.1": fn(*mut Context, *mut DeviceAttr) -> c_int;
    port_query = "ibv_query_port" @ "IBVERBS_1.1": fn(*mut Context, u8, *mut PortAttr) -> c_int;
    gid_query = "ibv_query_gid" @ "IBVERBS_1.1": fn(*mut Context, u8, c_int, *mut [u8; 16]) -> c_int;
    pd_alloc = "ibv_alloc_pd" @ "IBVERBS_1.1": fn(*mut Context) -> *mut Pd;
    pd_dealloc = "ibv_dealloc_pd" @ "IBVERBS_1.1": fn(*mut Pd) -> c_int;
    mr_reg = "ibv_reg_mr" @ "IBVERBS_1.1": fn(*mut Pd, *mut c_void, usize, c_int) -> *mut Mr;
    mr_dereg = "ibv_dereg_mr" @ "IBVERBS_1.1": fn(*mut Mr) -> c_int;
    channel_create = "ibv_create_comp_channel" @ "IBVERBS_1.0": fn(*mut Context) -> *mut CompChannel;
    channel_destroy = "ibv_destroy_comp_channel" @ "IBVERBS_1.0": fn(*mut CompChannel) -> c_int;
    cq_create = "ibv_create_cq" @ "IBVERBS_1.1":
        fn(*mut Context, c_int, *mut c_void, *mut CompChannel, c_int) -> *mut Cq;
    cq_resize = "ibv_resize_cq" @ "IBVERBS_1.1": fn(*mut Cq, c_int) -> c_int;
    cq_destroy = "ibv_destroy_cq" @ "IBVERBS_1.1": fn(*mut Cq) -> c_int;
    cq_event = "ibv_get_cq_event" @ "IBVERBS_1.1":
        fn(*mut CompChannel, *mut *mut Cq, *mut *mut c_void) -> c_int;
    cq_events_ack = "ibv_ack_cq_events" @ "IBVERBS_1.1": fn(*mut Cq, c_uint);
    srq_create = "ibv_create_srq" @ "IBVERBS_1.1": fn(*mut Pd, *mut SrqInitAttr) -> *mut Srq;
    srq_destroy = "ibv_destroy_srq" @ "IBVERBS_1.1": fn(*mut Srq) -> c_int;
    qp_create = "ibv_create_qp" @ "IBVERBS_1.1": fn(*mut Pd, *mut QpInitAttr) -> *mut Qp;
    qp_modify = "ibv_modify_qp" @ "IBVERBS_1.1": fn(*mut Qp, *mut QpAttr, c_int) -> c_int;
    qp_destroy = "ibv_destroy_qp" @ "IBVERBS_1.1": fn(*mut Qp) -> c_int;
    async_event = "ibv_get_async_event" @ "IBVERBS_1.1": fn(*mut Context, *mut AsyncEvent) -> c_int;
    async_event_ack = "ibv_ack_async_event" @ "IBVERBS_1.1": fn(*mut AsyncEvent);
}

impl Lib {
    /// The library of this process, loaded at the first call and never unloaded.
    ///
    /// # Errors
    /// Why it cannot be had; the answer stays the same for the life of the process.
    pub(crate) fn load() -> Result<Arc<Self>, String> {
        static LIB: OnceLock<Result<Arc<Lib>, String>> = OnceLock::new();
        LIB.get_or_init(|| {
            // SAFETY: loading runs the library's initialisers, which are made for that; it is the
            // library that every RDMA program on this node is linked to.
            let library = unsafe { Library::open(Some(LIBRARY), RTLD_NOW | RTLD_LOCAL) };
            let library = library.map_err(|error| {
                // The loader's own words, which name what it looked for, come with the cause.
                let why = error
                    .source()
                    .map_or(error.to_string(), ToString::to_string);
                format!("libibverbs cannot be loaded: {why}")
            })?;
            let library = NonNull::new(library.into_raw());
            let library = library.ok_or_else(|| format!("{LIBRARY} has no handle"))?;
            Self::resolve(library).map(Arc::new)
        })
        .clone()
    }

    /// A port's state, as `ibv_query_port` of the header asks for it.
    ///
    /// # Safety
    /// `context` is an open device of this library.
    pub(crate) unsafe fn port_query_whole(
        &self,
        context: *mut Context,
        port: u8,
        attr: &mut PortAttr,
    ) -> c_int {
        *attr = PortAttr::default();
        // SAFETY: the context is alive, and its `abi_compat` of all ones says that it lies within
        // a `VerbsContext`, whose `sz` says how far that reaches before the context.
        let extended = unsafe {
            let extended = (*context).abi_compat as usize == usize::MAX;
            extended
                .then(|| context.byte_sub(std::mem::offset_of!(VerbsContext, context)))
                .map(|at| at.cast::<VerbsContext>())
                .filter(|at| (**at).sz >= size_of::<VerbsContext>())
                .and_then(|at| (*at).query_port)
        };
        match extended {
            // SAFETY: the context is alive, and the length is that of what it writes to.
            Some(query) => unsafe { query(context, port, attr, size_of::<PortAttr>()) },
            // SAFETY: the context is alive; this function writes a part of the struct.
            None => unsafe { (self.port_query)(context, port, attr) },
        }
    }
}

/// A symbol in the version that we know the type of.
fn symbol_find(
    library: NonNull<c_void>,
    symbol: &str,
    version: &str,
) -> Result<NonNull<c_void>, String> {
    let missing = || format!("{LIBRARY} has no {symbol}@{version}: it is too old, or too new");
    let symbol = CString::new(symbol).map_err(|_| missing())?;
    let version = CString::new(version).map_err(|_| missing())?;
    #[cfg(target_env = "gnu")]
    // SAFETY: the library is loaded, and both names end with a zero.
    let found = unsafe { libc::dlvsym(library.as_ptr(), symbol.as_ptr(), version.as_ptr()) };
    // Without versions there is only one of each.
    #[cfg(not(target_env = "gnu"))]
    // SAFETY: the library is loaded, and the name ends with a zero.
    let found = unsafe {
        let _ = version;
        libc::dlsym(library.as_ptr(), symbol.as_ptr())
    };
    NonNull::new(found).ok_or_else(missing)
}
