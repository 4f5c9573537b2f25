//! The Python binding of the engine: converts arguments, results and errors, and nothing else.
//!
//! `src/sustain/_native.pyi` is its documentation.

mod engine;
mod errors;
mod objects;
mod outside;
mod replica;

use pyo3::prelude::*;

/// The module `sustain._native`.
#[pymodule]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::engine::Engine;
    #[pymodule_export]
    use crate::objects::{ArrayBuffer, File, Map};
    #[pymodule_export]
    use crate::outside::{Control, LogTail};
    #[pymodule_export]
    use crate::replica::Replica;

    #[pymodule_export]
    const UNKNOWN: u64 = sustain_core::control::UNKNOWN;

    /// What "auto" would choose for a store at `path`.
    #[pyfunction]
    fn durability_of(py: Python<'_>, path: std::path::PathBuf) -> PyResult<&'static str> {
        crate::errors::raise(py, sustain_core::medium::durability_at(&path).map(|d| d.name()))
    }

    /// Ways to find changed pages, best first.
    #[pyfunction]
    fn capture_modes() -> Vec<&'static str> {
        sustain_core::capture::available().into_iter().map(|m| m.name()).collect()
    }

    /// CLOCK_BOOTTIME in nanoseconds.
    #[pyfunction]
    fn boottime_ns() -> u64 {
        sustain_core::control::boottime_ns()
    }

    /// How cache lines are written back on this processor.
    #[pyfunction]
    fn write_back_way() -> String {
        format!("{:?}", sustain_core::medium::pmem::way()).to_lowercase()
    }
}

/// A read-only or writable memoryview over mapped memory; valid while its owner lives.
pub(crate) fn memory(py: Python<'_>, p: *mut u8, len: usize, writable: bool) -> PyResult<Py<PyAny>> {
    let flags = if writable { pyo3::ffi::PyBUF_WRITE } else { pyo3::ffi::PyBUF_READ };
    // SAFETY: the pointer is to a mapping that the native object keeps; Python code uses the view before it drops
    // that object, as the stub demands.
    unsafe {
        let view = pyo3::ffi::PyMemoryView_FromMemory(p.cast(), len as isize, flags);
        Ok(Bound::from_owned_ptr_or_err(py, view)?.unbind())
    }
}
