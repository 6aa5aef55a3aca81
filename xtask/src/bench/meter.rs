//! CPU time: what this process used, and what the kernel's own thread of the same core took over from it.

use std::fs;

use anyhow::{Context, Result, ensure};

/// CPU nanoseconds of all that a pinned process causes.
///
/// Softirq work is charged to whoever runs when it is raised, so generator, node and sink are one sum. What is too
/// much for that goes to the core's ksoftirqd, whose time is therefore added.
pub(crate) struct Meter {
    thread: String,
}

impl Meter {
    /// Pins the process (threads that are started later inherit it) to the core it is on.
    ///
    /// # Errors
    /// When the kernel refuses, or the core's ksoftirqd can't be found.
    pub(crate) fn pinned() -> Result<Self> {
        let core = pin_to_one_core()?;
        let name = format!("ksoftirqd/{core}");
        for entry in fs::read_dir("/proc")?.flatten() {
            if fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == name) {
                let meter = Self { thread: entry.path().join("schedstat").display().to_string() };
                meter.kernel()?;
                return Ok(meter);
            }
        }
        anyhow::bail!("no thread {name}")
    }

    /// So far.
    ///
    /// # Errors
    /// When /proc has another form.
    pub(crate) fn now(&self) -> Result<u64> {
        Ok(cpu_nanoseconds() + self.kernel()?)
    }

    fn kernel(&self) -> Result<u64> {
        let text = fs::read_to_string(&self.thread).with_context(|| self.thread.clone())?;
        let time = text.split_whitespace().next().and_then(|word| word.parse().ok());
        time.with_context(|| format!("{}: another form", self.thread))
    }
}

/// CPU time of this process so far, all threads, user and kernel.
pub(crate) fn cpu_nanoseconds() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Pins the calling thread to the core it is on, and says which.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn pin_to_one_core() -> Result<i32> {
    // SAFETY: sched_getcpu takes nothing; a cpu_set_t of zeros is the empty set.
    let (core, mut set) = unsafe { (libc::sched_getcpu().max(0), std::mem::zeroed::<libc::cpu_set_t>()) };
    // SAFETY: the core's number comes from the kernel and the set is a local variable.
    let done = unsafe {
        libc::CPU_SET(core as usize, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    ensure!(done == 0, "pinning to a core: {}", std::io::Error::last_os_error());
    Ok(core)
}

/// Lets the calling thread run on all cores again, so that agents started from it do.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn unpin() -> Result<()> {
    // SAFETY: a cpu_set_t is a set of bits; all of them set is every core.
    let done = unsafe {
        let mut set = std::mem::zeroed::<libc::cpu_set_t>();
        std::ptr::write_bytes(&raw mut set, 0xff, 1);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    ensure!(done == 0, "unpinning: {}", std::io::Error::last_os_error());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Meter;

    #[test]
    fn work_is_measured() {
        let meter = Meter::pinned().unwrap();
        let before = meter.now().unwrap();
        let sum = (0..1_000_000_u64).fold(1, |sum: u64, n| std::hint::black_box(sum.wrapping_mul(31) ^ n));
        assert!(std::hint::black_box(sum) != 0 && meter.now().unwrap() > before);
    }
}
