/* Threads, signals and segments of the socket engine. */
#include "engine.h"
#include "../../shm_layout/access.h"
#include "proxy.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SLICE_NS 100000ULL                  /* the kernel's least */

struct thread {
    struct worker_state *worker;
    pthread_t id;
    int       result;
    uint32_t  io;
    int       listen_fd;
    atomic_int state;                       /* 0 starting, 1 runs, 2 failed to start */
};

static atomic_int stop;
static int stop_fds[WORKERS_LIMIT * 64];
static atomic_int n_stop_fds;

/* Async-signal-safe: raise the stop level and wake every worker. */
static void on_term(int signal_number)
{
    (void)signal_number;
    int saved = errno;
    atomic_fetch_add(&stop, 1);
    uint64_t one = 1;
    for (int i = 0, n = atomic_load(&n_stop_fds); i < n; i++)
        if (write(stop_fds[i], &one, sizeof one) < 0)
            continue;                       /* its counter is full: it is awake */
    errno = saved;
}

static int map_segment(const char *name, struct service *service, char *error, uint32_t error_bytes)
{
    int fd = shm_open(name, O_RDWR | O_CLOEXEC, 0);
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) {
        int code = -errno;
        snprintf(error, error_bytes, "%s: cannot open the segment: %s", name, strerror(-code));
        if (fd >= 0)
            close(fd);
        return code;
    }
    service->segment_bytes = (uint64_t)st.st_size;
    void *base = st.st_size ? mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    close(fd);
    if (base == MAP_FAILED) {
        snprintf(error, error_bytes, "%s: cannot map the segment of %lld bytes", name, (long long)st.st_size);
        return -ENOMEM;
    }
    struct segment_mismatch mismatch = {0};
    int code = segment_check(base, service->segment_bytes, &mismatch);
    if (code) {
        snprintf(error, error_bytes, "%s: %s (found %#llx, expected %#llx)", name, segment_strerror(code),
                 (unsigned long long)mismatch.found, (unsigned long long)mismatch.expected);
        munmap(base, service->segment_bytes);
        return code;
    }
    service->segment = base;
    return 0;
}

/* A worker has a few dozen microseconds to do when something comes, and who sent it often runs on, on the same core. A short
 * slice (Linux 6.12) lets it go first; its share of the core stays what it was. Where the kernel refuses, nothing changes. */
static void take_short_slices(void)
{
    struct {                                /* struct sched_attr, which not every libc declares, and some twice */
        uint32_t size, policy;
        uint64_t flags;
        int32_t  nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } attr = {.size = 0};
    if (syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0) || (attr.policy != SCHED_OTHER && attr.policy != SCHED_BATCH))
        return;
    attr.size = sizeof attr;
    attr.runtime = SLICE_NS;
    syscall(SYS_sched_setattr, 0, &attr, 0);
}

/* The ring of a worker belongs to the thread that makes it, so each makes its own. */
static void *worker_thread(void *argument)
{
    struct thread *t = argument;
    struct worker_state *w = t->worker;
    take_short_slices();
    t->result = worker_make(w, w->service, w->index, t->io, t->listen_fd, &stop);
    atomic_store(&t->state, t->result ? 2 : 1);
    if (t->result == 0)
        t->result = worker_run(w);
    worker_destroy(w);
    return NULL;
}

static int start_service(const struct socket_service *config, struct service *service, struct thread *threads, char *error, uint32_t error_bytes)
{
    int code = map_segment(config->segment, service, error, error_bytes);
    if (code)
        return code;
    const struct segment_header *header = service->segment;
    if (config->workers == 0 || config->workers > header->max_workers || config->workers > WORKERS_LIMIT) {
        snprintf(error, error_bytes, "%s: %u workers, expected 1 to %u", config->segment, config->workers, header->max_workers);
        return -EINVAL;
    }
    service->mode = config->mode;
    service->workers = config->workers;
    balancer_repair(service->segment, worker_clock_ns());
    for (uint32_t i = 0; i < config->workers; i++) {
        service->wake_fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (service->wake_fds[i] < 0) {
            code = -errno;
            snprintf(error, error_bytes, "%s: no descriptor for worker %u: %s", config->segment, i, strerror(errno));
            return code;
        }
        stop_fds[atomic_load(&n_stop_fds)] = service->wake_fds[i];
        atomic_fetch_add(&n_stop_fds, 1);
    }
    for (uint32_t i = 0; i < config->workers; i++) {
        struct thread *t = &threads[i];
        void *memory = NULL;
        if (posix_memalign(&memory, 64, sizeof *t->worker))
            return -ENOMEM;
        memset(memory, 0, sizeof *t->worker);
        t->worker = memory;
        t->worker->service = service;
        t->worker->index = i;
        t->io = config->io;
        int on = 1;                         /* accepted connections inherit it; a unix socket has no such option */
        setsockopt(config->listen_fds[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        /* Each closes its own when it drains; a listener that several share is duplicated. */
        t->listen_fd = i && config->listen_fds[i] == config->listen_fds[0] ? fcntl(config->listen_fds[i], F_DUPFD_CLOEXEC, 0)
                                                                           : config->listen_fds[i];
        code = pthread_create(&t->id, NULL, worker_thread, t);
        if (code) {
            free(memory);
            t->worker = NULL;
            return -code;
        }
    }
    for (uint32_t i = 0; i < config->workers; i++) {
        while (atomic_load(&threads[i].state) == 0)
            usleep(200);
        if (atomic_load(&threads[i].state) == 2) {
            code = threads[i].result;
            snprintf(error, error_bytes, "%s: worker %u cannot start: %s", config->segment, i,
                     code > -1000 ? strerror(-code) : segment_strerror(code));
        }
    }
    return code;
}

int socket_engine_run(const struct socket_service *services, uint32_t n, int64_t supervisor_pid, char *error, uint32_t error_bytes)
{
    struct sigaction term = {.sa_handler = on_term, .sa_flags = SA_RESTART}, ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGTERM, &term, NULL);
    sigaction(SIGINT, &ignore, NULL);
    sigaction(SIGHUP, &ignore, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
    sigaction(SIGUSR1, &ignore, NULL);
    sigaction(SIGQUIT, &ignore, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (supervisor_pid && getppid() != supervisor_pid) {
        snprintf(error, error_bytes, "the supervisor (pid %lld) is gone", (long long)supervisor_pid);
        return -ESRCH;
    }
    struct service *made = calloc(n ? n : 1, sizeof *made);
    struct thread *threads = calloc((size_t)(n ? n : 1) * WORKERS_LIMIT, sizeof *threads);
    int code = made && threads ? 0 : -ENOMEM;
    if (code || n > 64)
        snprintf(error, error_bytes, "%u services: no memory, or more than 64", n);
    for (uint32_t i = 0; i < n && !code; i++)
        code = start_service(&services[i], &made[i], threads + (size_t)i * WORKERS_LIMIT, error, error_bytes);
    if (code)
        atomic_store(&stop, 2);
    for (uint32_t i = 0; threads && i < n * WORKERS_LIMIT; i++) {
        if (!threads[i].worker)
            continue;
        pthread_join(threads[i].id, NULL);
        if (threads[i].result && !code) {
            code = threads[i].result;
            snprintf(error, error_bytes, "a worker ended: %s", strerror(-code));
        }
        free(threads[i].worker);
    }
    for (uint32_t i = 0; made && i < n; i++) {
        for (uint32_t k = 0; k < made[i].workers; k++)
            if (made[i].wake_fds[k] > 0)
                close(made[i].wake_fds[k]);
        if (made[i].segment)
            munmap(made[i].segment, made[i].segment_bytes);
    }
    free(made);
    free(threads);
    return code;
}
