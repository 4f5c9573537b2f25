//! The Python binding of the engine and of TLS: converts arguments, results and errors, and nothing else.
//!
//! `src/sustain/_native.pyi` is its documentation.

mod arriving;
mod engine;
mod errors;
mod objects;
mod outside;
mod region;
mod replica;
mod tls;

use pyo3::prelude::*;

/// The module `sustain._native`.
#[pymodule]
mod _native {
    use pyo3::prelude::*;
    use pyo3::types::PyBytes;

    #[pymodule_export]
    use crate::arriving::{Fetcher, PageSource, arrival_of, create_arriving};
    #[pymodule_export]
    use crate::engine::Engine;
    #[pymodule_export]
    use crate::objects::{ArrayBuffer, File, Map};
    #[pymodule_export]
    use crate::outside::{Control, LogTail};
    #[pymodule_export]
    use crate::replica::Replica;
    #[pymodule_export]
    use crate::tls::{TlsEnd, TlsIdentity};

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

    /// Whether stores can be opened before their pages are here.
    #[pyfunction]
    fn on_demand_available() -> bool {
        sustain_core::pager::available()
    }

    /// CLOCK_BOOTTIME in nanoseconds.
    #[pyfunction]
    fn boottime_ns() -> u64 {
        sustain_core::control::boottime_ns()
    }

    /// Digests of the pages of a buffer.
    #[pyfunction]
    #[pyo3(signature = (data, *, still=false))]
    fn page_digests<'py>(
        py: Python<'py>,
        data: &Bound<'py, PyAny>,
        still: bool,
    ) -> PyResult<Bound<'py, PyBytes>> {
        crate::region::page_digests(py, data, still)
    }

    /// Runs of pages that are not what a table of digests says.
    #[pyfunction]
    #[pyo3(signature = (data, table, update=true, *, still=false))]
    fn changed_pages(
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        table: &Bound<'_, PyAny>,
        update: bool,
        still: bool,
    ) -> PyResult<Vec<(usize, usize)>> {
        crate::region::changed_pages(py, data, table, update, still)
    }

    /// Runs of pages in which two tables differ.
    #[pyfunction]
    fn differing_pages(
        py: Python<'_>,
        one: &Bound<'_, PyAny>,
        other: &Bound<'_, PyAny>,
    ) -> PyResult<Vec<(usize, usize)>> {
        crate::region::differing_pages(py, one, other)
    }

    /// Sums of pages of a store.
    #[pyfunction]
    fn page_sums<'py>(
        py: Python<'py>,
        first_page: u64,
        data: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        crate::region::page_sums(py, first_page, data)
    }

    /// Digest of a whole buffer.
    #[pyfunction]
    fn digest<'py>(py: Python<'py>, data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        crate::region::digest(py, data)
    }

    /// Write the cache lines of a buffer back, and wait for it.
    #[pyfunction]
    fn write_back(py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        crate::region::write_back(py, data)
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
