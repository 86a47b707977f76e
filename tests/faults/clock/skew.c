/* A wall clock that is wrong, for tests: loaded with LD_PRELOAD, it adds the seconds in the file $SKEW_SECONDS (eight bytes,
 * as the machine writes them) to CLOCK_REALTIME. Monotonic clocks are left alone, as a jump of the wall clock leaves them. A wait until a moment of the wall
 * clock ends when that clock says so, as in the kernel: a jump ahead ends it, a jump back prolongs it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *seconds;

__attribute__((constructor)) static void map_seconds(void) {
    const char *path = getenv("SKEW_SECONDS");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED)
        seconds = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && seconds && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *seconds;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec precise;
    int result = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return result;
}

time_t time(time_t *now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now)
        *now = precise.tv_sec;
    return precise.tv_sec;
}

int timespec_get(struct timespec *now, int base) {
    return base == TIME_UTC && clock_gettime(CLOCK_REALTIME, now) == 0 ? base : 0;
}

static const long slice = 20 * 1000 * 1000;
static const long second = 1000 * 1000 * 1000;

/* A slice of it, so that a jump is seen. Before its time it says that it was woken for nothing, as every wait may: waiting on
 * here instead would sleep through a signal that came between two slices. */
int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    struct timespec now, step;
    clock_gettime(CLOCK_REALTIME, &now);
    clock_gettime(CLOCK_MONOTONIC, &step);
    int64_t left = (until->tv_sec - now.tv_sec > 1) ? slice
                   : (int64_t)(until->tv_sec - now.tv_sec) * second + (until->tv_nsec - now.tv_nsec);
    step.tv_nsec += left < 0 ? 0 : left > slice ? slice : left;
    if (step.tv_nsec >= second) {
        step.tv_sec++;
        step.tv_nsec -= second;
    }
    int result = pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, &step);
    return result == ETIMEDOUT && left > 0 ? 0 : result;
}

/* What librdkafka waits with. Left to the C library it would compare a moment of this clock with the kernel's: hours ahead, a
 * wait of a second would last for hours. The library's types are those of pthreads, only wrapped. */
int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until) {
    int result = pthread_cond_timedwait((pthread_cond_t *)condition, (pthread_mutex_t *)mutex, until);
    return result == 0 ? thrd_success : result == ETIMEDOUT ? thrd_timedout : thrd_error;
}
