//! How many files the test process may have open: every namespace of a pod is one, and so is each end of a connection.

/// Raises the limit as far as it goes.
pub fn allow_many_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls only read or write the structure that lives on this stack.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    // Two tests with 3,000 connections at a time, both ends of them in this process, and one with 1,000 pods.
    assert!(limit.rlim_max >= 16_000, "the tests need 16,000 files: ulimit -Hn is {}", limit.rlim_max);
}
