//! Pages of a region and their digests.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use sustain_core::region::{self, DIGEST, Memory, Run, Table};

/// Anything with the buffer protocol, held for as long as its memory is used without the interpreter lock.
pub(crate) struct Held(PyBuffer<u8>);

// SAFETY: the buffer is only asked for its address and length, and released with the interpreter lock held.
unsafe impl Sync for Held {}

impl Held {
    pub(crate) fn get(object: &Bound<'_, PyAny>, writable: bool) -> PyResult<Self> {
        let buffer = PyBuffer::<u8>::get(object)?;
        if !buffer.is_c_contiguous() || (writable && buffer.readonly()) {
            return Err(PyValueError::new_err(
                "a contiguous buffer of bytes is needed, a writable one for a table",
            ));
        }
        Ok(Self(buffer))
    }

    /// `still`: the caller of the binding promises that nobody writes to the buffer meanwhile.
    fn memory(&self, still: bool) -> Memory {
        let (start, len) = (self.0.buf_ptr().cast(), self.0.len_bytes());
        // SAFETY: the buffer is held; others may change what is in it, which `Memory` allows, unless it was promised
        // that they do not.
        unsafe { if still { Memory::still(start, len) } else { Memory::new(start, len) } }
    }

    /// # Safety
    /// Nobody writes to the buffer for as long as the slice is used.
    pub(crate) unsafe fn bytes(&self) -> &[u8] {
        let (start, len) = (self.0.buf_ptr().cast::<u8>(), self.0.len_bytes());
        if len == 0 {
            return &[];
        }
        // SAFETY: the buffer is held and contiguous; that it does not change is the caller's promise.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    fn table(&self, pages: usize) -> PyResult<Table> {
        if self.0.len_bytes() != pages * DIGEST {
            return Err(PyValueError::new_err(format!(
                "a table of {pages} pages has {} bytes, not {}",
                pages * DIGEST,
                self.0.len_bytes()
            )));
        }
        // SAFETY: the buffer is held and has that length; `get` saw that it is writable where it is written.
        Ok(unsafe { Table::new(self.0.buf_ptr().cast(), pages) })
    }
}

pub(crate) fn page_digests<'py>(
    py: Python<'py>,
    data: &Bound<'py, PyAny>,
    still: bool,
) -> PyResult<Bound<'py, PyBytes>> {
    let data = Held::get(data, false)?;
    let pages = data.memory(still).pages();
    PyBytes::new_with(py, pages * DIGEST, |out| {
        // SAFETY: `out` has that length and is ours.
        let table = Shared(unsafe { Table::new(out.as_mut_ptr(), pages) });
        py.detach(|| region::digests(data.memory(still), table.get()));
        Ok(())
    })
}

pub(crate) fn changed_pages(
    py: Python<'_>,
    data: &Bound<'_, PyAny>,
    table: &Bound<'_, PyAny>,
    update: bool,
    still: bool,
) -> PyResult<Vec<Run>> {
    let (data, held) = (Held::get(data, false)?, Held::get(table, update)?);
    let table = Shared(held.table(data.memory(still).pages())?);
    Ok(py.detach(|| region::changed(data.memory(still), table.get(), update)))
}

pub(crate) fn differing_pages(
    py: Python<'_>,
    one: &Bound<'_, PyAny>,
    other: &Bound<'_, PyAny>,
) -> PyResult<Vec<Run>> {
    let (one, other) = (Held::get(one, false)?, Held::get(other, false)?);
    let pages = one.0.len_bytes() / DIGEST;
    let tables = (Shared(one.table(pages)?), Shared(other.table(pages)?));
    Ok(py.detach(|| region::differing(tables.0.get(), tables.1.get())))
}

pub(crate) fn digest<'py>(py: Python<'py>, data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let data = Held::get(data, false)?;
    Ok(PyBytes::new(py, &py.detach(|| region::digest_of(data.memory(false)))))
}

pub(crate) fn page_sums<'py>(
    py: Python<'py>,
    first_page: u64,
    data: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyBytes>> {
    let data = Held::get(data, false)?;
    // SAFETY: the caller of the binding promises that nobody writes to the buffer meanwhile.
    let sums = py.detach(|| sustain_core::checksum::page_sums(first_page, unsafe { data.bytes() }));
    Ok(PyBytes::new(py, &sums))
}

pub(crate) fn write_back(py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<()> {
    let data = Held::get(data, false)?;
    py.detach(|| region::write_back(data.memory(false)));
    Ok(())
}

/// A table on its way into a stretch without the interpreter lock, in the same thread.
struct Shared(Table);

// SAFETY: the memory is held by the caller for the whole stretch.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(&self) -> Table {
        self.0
    }
}
