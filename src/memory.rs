//! How the system's allocator gives memory back.
//!
//! The speed layer makes large buffers on one thread and frees them on another, thousands a second. As glibc is by default,
//! each thread keeps an arena of its own, and what was once freed in large pieces is kept: at full speed a worker held a
//! fifth more memory than with the settings here (`highwater bench speed --only throughput`). A batch run alone is the other
//! way round: it asks for the same buffers again and again, and its threads wait for each other in a shared arena.

/// Buffers from this size on are mapped by themselves, and given back as soon as they are freed.
const MAPPED: libc::c_int = 1 << 20;
/// Threads share so many arenas.
const ARENAS: libc::c_int = 2;

/// Has the allocator keep less. To be called once, before threads are started.
pub(crate) fn give_back() {
    // Setting the threshold also keeps glibc from raising it by itself.
    for (setting, value) in [
        (libc::M_ARENA_MAX, ARENAS),
        (libc::M_MMAP_THRESHOLD, MAPPED),
        (libc::M_TRIM_THRESHOLD, MAPPED),
    ] {
        #[expect(unsafe_code, reason = "a call into the C library")]
        // SAFETY: no pointers; it changes numbers that the allocator reads, and no other thread runs yet.
        let taken = unsafe { libc::mallopt(setting, value) };
        if taken == 0 {
            tracing::debug!(setting, "the allocator does not take a setting");
        }
    }
}
