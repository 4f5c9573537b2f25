//! Errors of the engine become the classes of `sustain.errors`, found by name.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use sustain_core::Error;

fn class(e: &Error) -> &'static str {
    match e {
        Error::Io { .. } => "StoreIOError",
        Error::NotAStore(_) => "NotAStore",
        Error::NewerVersion(_) => "NewerVersion",
        Error::StoreBusy(_) => "StoreBusy",
        Error::StoreCorrupt(_) => "StoreCorrupt",
        Error::StoreArriving(_) => "StoreArriving",
        Error::StoreUntrusted(_) => "StoreUntrusted",
        Error::StoreFenced(_) => "StoreFenced",
        Error::StoreFull(_) => "StoreFull",
        Error::LogTooSmall(_) => "LogTooSmall",
        Error::LogFull(_) => "LogFull",
        Error::BudgetExceeded(_) => "BudgetExceeded",
        Error::StorePoisoned(_) => "StorePoisoned",
        Error::StoreReadOnly(_) => "StoreReadOnly",
        Error::StoreClosed(_) => "StoreClosed",
        Error::ObjectInUse(_) => "ObjectInUse",
        Error::NoSuchObject(_) => "NoSuchObject",
        _ => "StoreError",
    }
}

#[cold]
fn convert(py: Python<'_>, e: &Error) -> PyErr {
    let made = (|| {
        let class = py.import("sustain.errors")?.getattr(class(e))?;
        let kwargs = PyDict::new(py);
        kwargs.set_item("hint", e.hint())?;
        if let Error::Io { source, .. } = e {
            kwargs.set_item("errno", source.raw_os_error())?;
        }
        class.call((e.to_string(),), Some(&kwargs))
    })();
    made.map_or_else(|e| e, PyErr::from_value)
}

/// The result for Python.
#[inline]
pub fn raise<T>(py: Python<'_>, r: sustain_core::Result<T>) -> PyResult<T> {
    match r {
        Ok(v) => Ok(v),
        Err(e) => Err(convert(py, &e)),
    }
}

/// A word that is not one of those allowed.
#[cold]
pub fn bad_word(what: &str, got: &str, allowed: &str) -> PyErr {
    PyValueError::new_err(format!("{what} is one of {allowed}, not {got:?}"))
}
