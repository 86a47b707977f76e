//! libchdb, loaded at run time: the only unsafe code of this crate.
//!
//! The library is 560 MB and comes from npm, so it is not linked: a build needs nothing of it. Its C interface has
//! no header in the package; the signatures here were taken from chdb's sources for 26.5 and each is called by a test.
//!
//! What has to be known about it:
//! - the first connection starts the engine on its `--path`, the last one closed stops it; a connection that is never
//!   closed hangs the process at exit;
//! - a connection runs one statement at a time, calls may come from any thread;
//! - of a result that carries an error only the error may be read, its counters are not initialised;
//! - a library that was unloaded would take running threads with it, so it stays loaded for ever.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::NonNull;

use libloading::os::unix::{Library as SharedObject, RTLD_LOCAL, RTLD_NOW};

use crate::exception::Exception;

type Handle = *mut c_void;
type ChdbResult = *mut c_void;

type Connect = unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut Handle;
type CloseConnection = unsafe extern "C" fn(*mut Handle);
type SetSignalHandlers = unsafe extern "C" fn(c_int);
type QueryWithParameters = unsafe extern "C" fn(
    Handle,
    *const c_char,
    usize,
    *const c_char,
    usize,
    *const *const c_char,
    *const usize,
    *const *const c_char,
    *const usize,
    usize,
) -> ChdbResult;
type Destroy = unsafe extern "C" fn(ChdbResult);
type Buffer = unsafe extern "C" fn(ChdbResult) -> *const c_char;
type Length = unsafe extern "C" fn(ChdbResult) -> usize;
type ErrorText = unsafe extern "C" fn(ChdbResult) -> *const c_char;
type Counter = unsafe extern "C" fn(ChdbResult) -> u64;

/// Why the library cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LibraryError {
    /// There is no such file.
    #[error(
        "there is no libchdb at {0}: run deploy/embedded-clickhouse/fetch-libchdb, or name one with --library FILE"
    )]
    Missing(String),
    /// The file is not a library that can be loaded, or lacks a function.
    #[error("cannot load libchdb from {path}: {reason}")]
    Unusable {
        /// Where it was looked for.
        path: String,
        /// What the loader says.
        reason: String,
    },
    /// The engine did not start.
    #[error("the engine did not start on {0}: is the folder readable, and was it written by this version?")]
    NotStarted(String),
}

/// The functions of libchdb that are used.
#[derive(Debug)]
pub(crate) struct Library {
    connect: Connect,
    close: CloseConnection,
    query: QueryWithParameters,
    destroy: Destroy,
    buffer: Buffer,
    length: Length,
    error: ErrorText,
    result_rows: Counter,
    result_bytes: Counter,
    read_rows: Counter,
    read_bytes: Counter,
    written_rows: Counter,
    written_bytes: Counter,
}

/// What a statement read, wrote and gave, as the engine counted it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) read_rows: u64,
    pub(crate) read_bytes: u64,
    pub(crate) written_rows: u64,
    pub(crate) written_bytes: u64,
    pub(crate) result_rows: u64,
    pub(crate) result_bytes: u64,
}

/// The result of a statement.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// The formatted rows; empty where the statement wrote them to a file or has none.
    pub(crate) body: Vec<u8>,
    pub(crate) counters: Counters,
}

impl Library {
    /// Loads the library for the rest of the process.
    pub(crate) fn load(path: &Path) -> Result<&'static Library, LibraryError> {
        if !path.is_file() {
            return Err(LibraryError::Missing(path.display().to_string()));
        }
        let unusable = |e: libloading::Error| LibraryError::Unusable {
            path: path.display().to_string(),
            reason: e.to_string(),
        };
        #[expect(unsafe_code, reason = "loading a library runs its initialisers")]
        // SAFETY: the file is the one the operator named; like the program itself it is trusted to be what it says.
        let object = unsafe { SharedObject::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(unusable)?;
        macro_rules! symbol {
            ($name:literal, $kind:ty) => {{
                #[expect(
                    unsafe_code,
                    reason = "a symbol of a library has the type its documentation says"
                )]
                // SAFETY: the type is the function's C signature in chdb 26.5, the version that is fetched.
                let function = unsafe { object.get::<$kind>($name) }.map_err(unusable)?;
                *function
            }};
        }
        let signal_handlers = symbol!(b"chdb_set_signal_handlers_enabled\0", SetSignalHandlers);
        let library = Library {
            connect: symbol!(b"chdb_connect\0", Connect),
            close: symbol!(b"chdb_close_conn\0", CloseConnection),
            query: symbol!(b"chdb_query_with_params_n\0", QueryWithParameters),
            destroy: symbol!(b"chdb_destroy_query_result\0", Destroy),
            buffer: symbol!(b"chdb_result_buffer\0", Buffer),
            length: symbol!(b"chdb_result_length\0", Length),
            error: symbol!(b"chdb_result_error\0", ErrorText),
            result_rows: symbol!(b"chdb_result_rows_read\0", Counter),
            result_bytes: symbol!(b"chdb_result_bytes_read\0", Counter),
            read_rows: symbol!(b"chdb_result_storage_rows_read\0", Counter),
            read_bytes: symbol!(b"chdb_result_storage_bytes_read\0", Counter),
            written_rows: symbol!(b"chdb_result_rows_written\0", Counter),
            written_bytes: symbol!(b"chdb_result_bytes_written\0", Counter),
        };
        #[expect(unsafe_code, reason = "a call into the library")]
        // SAFETY: takes a flag, may be called before the first connection. Its handlers would sleep for minutes
        // before a crash ends the process.
        unsafe {
            signal_handlers(0);
        }
        // The library's threads and exit handlers run as long as the process does.
        std::mem::forget(object);
        Ok(Box::leak(Box::new(library)))
    }

    /// Opens a connection; the first one starts the engine with these arguments.
    pub(crate) fn connect(&'static self, arguments: &[String]) -> Result<Connection, LibraryError> {
        let failed = || LibraryError::NotStarted(arguments.join(" "));
        let mut owned = Vec::with_capacity(arguments.len() + 1);
        owned.push(c"clickhouse".to_owned());
        for argument in arguments {
            owned.push(CString::new(argument.as_str()).map_err(|_| failed())?);
        }
        let mut pointers: Vec<*mut c_char> = owned.iter().map(|s| s.as_ptr().cast_mut()).collect();
        let count = c_int::try_from(pointers.len()).map_err(|_| failed())?;
        #[expect(unsafe_code, reason = "a call into the library")]
        // SAFETY: `count` valid C strings, which live until the call returns; the library copies them.
        let raw = unsafe { (self.connect)(count, pointers.as_mut_ptr()) };
        let handle = NonNull::new(raw).ok_or_else(failed)?;
        Ok(Connection { handle, library: self })
    }
}

/// One connection: a session of the engine with its own settings and current database.
#[derive(Debug)]
pub(crate) struct Connection {
    handle: NonNull<Handle>,
    library: &'static Library,
}

#[expect(unsafe_code, reason = "the handle is a raw pointer")]
// SAFETY: the engine ties no state of a connection to the thread that made it (each call sets up and tears down its
// own thread state under the connection's mutex), and `&mut self` allows one call at a time.
unsafe impl Send for Connection {}

impl Connection {
    /// Runs a statement and waits for its end. `format` is that of the rows, where the statement does not say.
    pub(crate) fn query(
        &mut self,
        sql: &[u8],
        format: &str,
        parameters: &[(String, String)],
    ) -> Result<Answer, Exception> {
        let names: Vec<*const c_char> = parameters.iter().map(|(name, _)| name.as_ptr().cast()).collect();
        let name_lengths: Vec<usize> = parameters.iter().map(|(name, _)| name.len()).collect();
        let values: Vec<*const c_char> = parameters.iter().map(|(_, value)| value.as_ptr().cast()).collect();
        let value_lengths: Vec<usize> = parameters.iter().map(|(_, value)| value.len()).collect();
        #[expect(unsafe_code, reason = "calls into the library")]
        // SAFETY: the handle is open until `drop`; every pointer comes with its length and outlives the call; the
        // four arrays have `parameters.len()` entries. `Outcome` destroys what is returned.
        let outcome = unsafe {
            Outcome {
                raw: (self.library.query)(
                    *self.handle.as_ptr(),
                    sql.as_ptr().cast(),
                    sql.len(),
                    format.as_ptr().cast(),
                    format.len(),
                    names.as_ptr(),
                    name_lengths.as_ptr(),
                    values.as_ptr(),
                    value_lengths.as_ptr(),
                    parameters.len(),
                ),
                library: self.library,
            }
        };
        outcome.read()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "a call into the library")]
        // SAFETY: the handle came from `connect` and is closed here and nowhere else.
        unsafe {
            (self.library.close)(self.handle.as_ptr());
        }
    }
}

/// A result that the library allocated.
struct Outcome {
    raw: ChdbResult,
    library: &'static Library,
}

impl Outcome {
    fn read(self) -> Result<Answer, Exception> {
        if self.raw.is_null() {
            return Err(Exception::logical("the engine gave neither a result nor an error"));
        }
        #[expect(unsafe_code, reason = "calls into the library")]
        // SAFETY: the result is not null and lives until `drop`. The error is a C string or null; the buffer has
        // `length` bytes; without an error the counters are initialised.
        unsafe {
            let error = (self.library.error)(self.raw);
            if !error.is_null() {
                return Err(Exception::from_engine(
                    CStr::from_ptr(error).to_string_lossy().into_owned(),
                ));
            }
            let length = (self.library.length)(self.raw);
            let buffer = (self.library.buffer)(self.raw);
            let body = if length == 0 || buffer.is_null() {
                Vec::new()
            } else {
                std::slice::from_raw_parts(buffer.cast::<u8>(), length).to_vec()
            };
            let counters = Counters {
                read_rows: (self.library.read_rows)(self.raw),
                read_bytes: (self.library.read_bytes)(self.raw),
                written_rows: (self.library.written_rows)(self.raw),
                written_bytes: (self.library.written_bytes)(self.raw),
                result_rows: (self.library.result_rows)(self.raw),
                result_bytes: (self.library.result_bytes)(self.raw),
            };
            Ok(Answer { body, counters })
        }
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            #[expect(unsafe_code, reason = "a call into the library")]
            // SAFETY: the result came from the library and is destroyed once; nothing borrowed from it is kept.
            unsafe {
                (self.library.destroy)(self.raw);
            }
        }
    }
}
