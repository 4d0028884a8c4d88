//! The libraries of rdma-core, opened when first needed: a program that never says `rdma:` runs without them.
//!
//! One `dlopen` of librdmacm is enough, since it brings libibverbs along and a look-up searches both. The library stays
//! loaded for ever: its functions are plain pointers with no lifetime.

#![expect(unsafe_code, reason = "opens a foreign library; rules in `verbs`")]

use std::{error::Error as _, sync::OnceLock};

use libc::{c_char, c_int, c_uint, c_void, sockaddr};
use libloading::os::unix::{Library as Handle, RTLD_LOCAL, RTLD_NOW};

use super::sys::*;

/// What is opened.
pub(super) const LIBRARY: &str = "librdmacm.so.1";

/// Why the library is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The dynamic linker found none, or none it could use.
    #[error("cannot load {LIBRARY}: {reason}")]
    Open {
        /// The linker's own words.
        reason: String,
    },
    /// It is too old, or not what its name says.
    #[error("{LIBRARY} has no function {function}: {reason}")]
    Function {
        /// What was looked for.
        function: &'static str,
        /// The linker's own words.
        reason: String,
    },
}

/// The linker's words; libloading's own text leaves them out.
fn reason(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

macro_rules! functions {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) $(-> $answer:ty)?;)*) => {
        /// The functions used, by their names in the manual.
        pub(super) struct Library {
            $(pub(super) $name: unsafe extern "C" fn($($kind),*) $(-> $answer)?,)*
        }

        impl Library {
            fn load() -> Result<Self, LoadError> {
                // SAFETY: rdma-core's initialisers only set up their own state (and read its environment variables).
                let handle = unsafe { Handle::open(Some(LIBRARY), RTLD_NOW | RTLD_LOCAL) }
                    .map_err(|error| LoadError::Open { reason: reason(&error) })?;
                let library = Self {
                    $($name: {
                        // SAFETY: the type is the one of rdma-core's header (compared below, by the compiler); the
                        // library's ABI is stable within its `.so.1`.
                        let function = unsafe {
                            handle.get::<unsafe extern "C" fn($($kind),*) $(-> $answer)?>(stringify!($name))
                        };
                        *function.map_err(|error| LoadError::Function {
                            function: stringify!($name),
                            reason: reason(&error),
                        })?
                    },)*
                };
                // The pointers must stay valid.
                std::mem::forget(handle);
                Ok(library)
            }
        }

        /// The compiler compares each signature with the header's. Never called, so nothing is linked.
        const _: fn() = || {
            $(let _: unsafe extern "C" fn($($kind),*) $(-> $answer)? = $name;)*
        };
    };
}

functions! {
    fn rdma_create_event_channel() -> *mut rdma_event_channel;
    fn rdma_destroy_event_channel(channel: *mut rdma_event_channel);
    fn rdma_get_cm_event(channel: *mut rdma_event_channel, event: *mut *mut rdma_cm_event) -> c_int;
    fn rdma_ack_cm_event(event: *mut rdma_cm_event) -> c_int;
    fn rdma_create_id(channel: *mut rdma_event_channel, id: *mut *mut rdma_cm_id, context: *mut c_void, space: rdma_port_space::Type) -> c_int;
    fn rdma_destroy_id(id: *mut rdma_cm_id) -> c_int;
    fn rdma_migrate_id(id: *mut rdma_cm_id, channel: *mut rdma_event_channel) -> c_int;
    fn rdma_set_option(id: *mut rdma_cm_id, level: c_int, name: c_int, value: *mut c_void, len: usize) -> c_int;
    fn rdma_bind_addr(id: *mut rdma_cm_id, address: *mut sockaddr) -> c_int;
    fn rdma_resolve_addr(id: *mut rdma_cm_id, source: *mut sockaddr, destination: *mut sockaddr, milliseconds: c_int) -> c_int;
    fn rdma_resolve_route(id: *mut rdma_cm_id, milliseconds: c_int) -> c_int;
    fn rdma_listen(id: *mut rdma_cm_id, backlog: c_int) -> c_int;
    fn rdma_connect(id: *mut rdma_cm_id, parameters: *mut rdma_conn_param) -> c_int;
    fn rdma_accept(id: *mut rdma_cm_id, parameters: *mut rdma_conn_param) -> c_int;
    fn rdma_reject(id: *mut rdma_cm_id, data: *const c_void, len: u8) -> c_int;
    fn rdma_disconnect(id: *mut rdma_cm_id) -> c_int;
    fn rdma_create_qp(id: *mut rdma_cm_id, pd: *mut ibv_pd, attributes: *mut ibv_qp_init_attr) -> c_int;
    fn rdma_destroy_qp(id: *mut rdma_cm_id);
    fn ibv_get_device_list(count: *mut c_int) -> *mut *mut ibv_device;
    fn ibv_free_device_list(list: *mut *mut ibv_device);
    fn ibv_get_device_name(device: *mut ibv_device) -> *const c_char;
    fn ibv_open_device(device: *mut ibv_device) -> *mut ibv_context;
    fn ibv_close_device(context: *mut ibv_context) -> c_int;
    fn ibv_query_device(context: *mut ibv_context, attributes: *mut ibv_device_attr) -> c_int;
    fn ibv_query_port(context: *mut ibv_context, port: u8, attributes: *mut _compat_ibv_port_attr) -> c_int;
    fn ibv_query_gid(context: *mut ibv_context, port: u8, index: c_int, gid: *mut ibv_gid) -> c_int;
    fn ibv_alloc_pd(context: *mut ibv_context) -> *mut ibv_pd;
    fn ibv_dealloc_pd(pd: *mut ibv_pd) -> c_int;
    fn ibv_reg_mr_iova2(pd: *mut ibv_pd, address: *mut c_void, len: usize, iova: u64, access: c_uint) -> *mut ibv_mr;
    fn ibv_dereg_mr(mr: *mut ibv_mr) -> c_int;
    fn ibv_create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel;
    fn ibv_destroy_comp_channel(channel: *mut ibv_comp_channel) -> c_int;
    fn ibv_create_cq(context: *mut ibv_context, entries: c_int, cookie: *mut c_void, channel: *mut ibv_comp_channel, vector: c_int) -> *mut ibv_cq;
    fn ibv_destroy_cq(cq: *mut ibv_cq) -> c_int;
    fn ibv_get_cq_event(channel: *mut ibv_comp_channel, cq: *mut *mut ibv_cq, cookie: *mut *mut c_void) -> c_int;
    fn ibv_ack_cq_events(cq: *mut ibv_cq, count: c_uint);
    fn ibv_modify_qp(qp: *mut ibv_qp, attributes: *mut ibv_qp_attr, mask: c_int) -> c_int;
    fn ibv_wc_status_str(status: ibv_wc_status::Type) -> *const c_char;
}

impl Library {
    /// The library, opened by the first call that succeeds. A failure is not remembered: installing the library helps
    /// a process that is running already.
    pub(super) fn get() -> Result<&'static Self, LoadError> {
        static LOADED: OnceLock<Library> = OnceLock::new();
        if let Some(library) = LOADED.get() {
            return Ok(library);
        }
        let library = Self::load()?;
        Ok(LOADED.get_or_init(|| library))
    }
}

impl From<LoadError> for super::Error {
    fn from(error: LoadError) -> Self {
        Self { call: "dlopen", source: std::io::Error::new(std::io::ErrorKind::Unsupported, error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever reads "dlopen failed" alone is no wiser.
    #[test]
    fn a_failure_has_the_linkers_words() {
        // SAFETY: there is nothing to run.
        let error = unsafe { Handle::open(Some("libmig-has-none.so.1"), RTLD_NOW) }.unwrap_err();
        assert!(reason(&error).contains("cannot open shared object file"), "{}", reason(&error));
    }

    #[test]
    fn a_missing_function_is_told_by_name() {
        let error = LoadError::Function { function: "ibv_x", reason: "undefined symbol".into() };
        assert_eq!(error.to_string(), "librdmacm.so.1 has no function ibv_x: undefined symbol");
    }

    /// Either it loads, or the reason is complete; which of the two is the machine's affair.
    #[test]
    fn the_library_loads_or_says_why() {
        match Library::get() {
            Ok(first) => assert!(std::ptr::eq(first, Library::get().unwrap())),
            Err(error) => assert!(error.to_string().contains(".so"), "{error}"),
        }
    }
}
