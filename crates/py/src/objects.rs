//! Maps, files, and the memory of arrays.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::exceptions::{PyBufferError, PyKeyError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use sustain_core::Result as CoreResult;
use sustain_core::objects::{FileRef, MapRef, Objects, Scan};
use sustain_core::work::Work;

use crate::engine::Engine;
use crate::errors::raise;

/// Documented in `_native.pyi`.
#[pyclass(subclass, frozen, module = "sustain._native")]
pub struct Map {
    engine: Py<Engine>,
    name: String,
    handle: Handle,
}

fn bytes<'a>(what: &str, object: &'a Bound<'_, PyAny>) -> PyResult<&'a [u8]> {
    match object.cast::<PyBytes>() {
        Ok(b) => Ok(b.as_bytes()),
        Err(_) => {
            Err(PyTypeError::new_err(format!("a map's {what} is bytes, not {}", object.get_type().name()?)))
        }
    }
}

/// The words of a handle. Read and changed only under the store's mutex: they need no lock of their own.
struct Handle([AtomicU64; 2]);

impl Handle {
    fn new(words: [u64; 2]) -> Self {
        Self(words.map(AtomicU64::new))
    }

    #[inline]
    fn get(&self) -> [u64; 2] {
        [self.0[0].load(Ordering::Relaxed), self.0[1].load(Ordering::Relaxed)]
    }

    fn set(&self, words: [u64; 2]) {
        for (to, word) in self.0.iter().zip(words) {
            to.store(word, Ordering::Relaxed);
        }
    }
}

impl Map {
    #[inline]
    fn with<R>(&self, f: impl FnOnce(&mut Work, &mut Objects, MapRef) -> CoreResult<R>) -> CoreResult<R> {
        self.engine.get().store.change(|w, o| {
            let mut handle = MapRef::from_words(self.handle.get());
            if !o.map_is_current(handle) {
                handle = o.map(w, &self.name, false)?;
                self.handle.set(handle.words());
            }
            f(w, o, handle)
        })
    }
}

#[pymethods]
impl Map {
    #[new]
    fn new(py: Python<'_>, engine: Py<Engine>, name: String) -> PyResult<Self> {
        let handle = raise(py, engine.get().store.change(|w, o| o.map(w, &name, true)))?;
        Ok(Self { engine, name, handle: Handle::new(handle.words()) })
    }

    fn __getitem__<'py>(&self, py: Python<'py>, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let k = bytes("key", key)?;
        let found = self.with(|w, o, m| Ok(o.map_get(w, m, k)?.map(|v| PyBytes::new(py, v))));
        raise(py, found)?.ok_or_else(|| PyKeyError::new_err(key.clone().unbind()))
    }

    #[pyo3(signature = (key, default = None))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let k = bytes("key", key)?;
        let found = self.with(|w, o, m| Ok(o.map_get(w, m, k)?.map(|v| PyBytes::new(py, v))));
        Ok(raise(py, found)?.map(Bound::into_any).or(default))
    }

    fn __setitem__(&self, py: Python<'_>, key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let (k, v) = (bytes("key", key)?, bytes("value", value)?);
        raise(py, self.with(|w, o, m| o.map_set(w, m, k, v).map(|_| ())))
    }

    fn __delitem__(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<()> {
        let k = bytes("key", key)?;
        if raise(py, self.with(|w, o, m| o.map_remove(w, m, k)))? {
            return Ok(());
        }
        Err(PyKeyError::new_err(key.clone().unbind()))
    }

    fn __contains__(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Ok(k) = key.cast::<PyBytes>() else { return Ok(false) };
        raise(py, self.with(|w, o, m| o.map_contains(w, m, k.as_bytes())))
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(raise(py, self.with(|w, o, m| o.map_len(w, m)))? as usize)
    }

    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        raise(py, self.with(|w, o, m| o.map_clear(w, m)))
    }

    #[allow(clippy::type_complexity)] // the stub names it
    fn scan<'py>(
        &self,
        py: Python<'py>,
        cursor: u64,
        limit: usize,
    ) -> PyResult<(u64, Vec<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)>)> {
        // Copied first: making Python objects may run the collector, and with it code that uses the store.
        let mut found: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let scan =
            self.with(|w, o, m| o.map_scan(w, m, cursor, limit, |k, v| found.push((k.to_vec(), v.to_vec()))));
        let next = match raise(py, scan)? {
            Scan::More(cursor) => cursor,
            Scan::Done => 0,
            Scan::Changed => return Err(PyRuntimeError::new_err("map changed size during iteration")),
        };
        Ok((next, found.iter().map(|(k, v)| (PyBytes::new(py, k), PyBytes::new(py, v))).collect()))
    }

    #[getter]
    fn name(&self) -> &str {
        &self.name
    }
}

/// Documented in `_native.pyi`.
#[pyclass(subclass, frozen, module = "sustain._native")]
pub struct File {
    engine: Py<Engine>,
    name: String,
    handle: Handle,
}

impl File {
    fn with<R>(&self, f: impl FnOnce(&mut Work, &mut Objects, FileRef) -> CoreResult<R>) -> CoreResult<R> {
        self.engine.get().store.change(|w, o| {
            let mut handle = FileRef::from_words(self.handle.get());
            if !o.file_is_current(handle) {
                handle = o.file(w, &self.name, false)?;
                self.handle.set(handle.words());
            }
            f(w, o, handle)
        })
    }
}

/// Offsets and sizes are not negative.
fn natural(what: &str, n: i64) -> PyResult<u64> {
    u64::try_from(n).map_err(|_| PyValueError::new_err(format!("{what} is negative: {n}")))
}

#[pymethods]
impl File {
    #[new]
    fn new(py: Python<'_>, engine: Py<Engine>, name: String) -> PyResult<Self> {
        let handle = raise(py, engine.get().store.change(|w, o| o.file(w, &name, true)))?;
        Ok(Self { engine, name, handle: Handle::new(handle.words()) })
    }

    fn pread<'py>(&self, py: Python<'py>, length: i64, offset: i64) -> PyResult<Bound<'py, PyBytes>> {
        let (length, offset) = (natural("length", length)?, natural("offset", offset)?);
        let read = self.with(|w, o, f| {
            let left = o.file_size(w, f)?.saturating_sub(offset);
            let mut buffer = vec![0u8; length.min(left) as usize];
            let n = o.file_read(w, f, offset, &mut buffer)?;
            buffer.truncate(n);
            Ok(buffer)
        });
        Ok(PyBytes::new(py, &raise(py, read)?))
    }

    fn pwrite(&self, py: Python<'_>, data: &Bound<'_, PyAny>, offset: i64) -> PyResult<usize> {
        let offset = natural("offset", offset)?;
        if let Ok(b) = data.cast::<PyBytes>() {
            let b = b.as_bytes();
            raise(py, self.with(|w, o, f| o.file_write(w, f, offset, b)))?;
            return Ok(b.len());
        }
        let buffer = pyo3::buffer::PyBuffer::<u8>::get(
            &py.import("builtins")?.getattr("memoryview")?.call1((data,))?.call_method1("cast", ("B",))?,
        )?;
        let copy = buffer.to_vec(py)?;
        raise(py, self.with(|w, o, f| o.file_write(w, f, offset, &copy)))?;
        Ok(copy.len())
    }

    fn truncate(&self, py: Python<'_>, size: i64) -> PyResult<()> {
        let size = natural("size", size)?;
        raise(py, self.with(|w, o, f| o.file_truncate(w, f, size)))
    }

    #[getter]
    fn size(&self, py: Python<'_>) -> PyResult<u64> {
        raise(py, self.with(|w, o, f| o.file_size(w, f)))
    }

    #[getter]
    fn name(&self) -> &str {
        &self.name
    }
}

/// The memory of an array, for NumPy.
#[pyclass(frozen, module = "sustain._native")]
pub struct ArrayBuffer {
    engine: Py<Engine>,
    base: usize,
    offset: u64,
    len: u64,
    writable: bool,
}

impl ArrayBuffer {
    pub(crate) fn new(engine: Py<Engine>, base: usize, offset: u64, len: u64, writable: bool) -> Self {
        Self { engine, base, offset, len, writable }
    }
}

#[pymethods]
impl ArrayBuffer {
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        if flags & ffi::PyBUF_WRITABLE != 0 && !this.writable {
            return Err(PyBufferError::new_err("the store is open read-only"));
        }
        let export = this.engine.get().store.change(|_, o| {
            o.export(this.offset, this.len);
            Ok(())
        });
        raise(slf.py(), export)?;
        // SAFETY: Python gives a valid structure to fill; the memory is part of the view, which lives as long as the
        // engine, which this object holds.
        let filled = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                this.base as *mut _,
                this.len as isize,
                c_int::from(!this.writable),
                flags,
            )
        };
        if filled == -1 { Err(PyErr::fetch(slf.py())) } else { Ok(()) }
    }

    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        // A closed store has no exports to count.
        let _ = self.engine.get().store.change(|_, o| {
            o.unexport(self.offset);
            Ok(())
        });
    }
}
