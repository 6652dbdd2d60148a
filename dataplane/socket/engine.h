/* Engine 1: a TCP and HTTP/1.1 proxy, one thread per service and worker.
 *
 * The caller (a thin Python module, or a test program) has mapped nothing: the engine opens the segments by name, starts the
 * threads and returns when they have ended. No Python runs in between.
 */
#ifndef VICKREY_ENGINE_H
#define VICKREY_ENGINE_H

#include <stdint.h>

/* cdef:begin */
enum socket_mode { MODE_HTTP = 0, MODE_TCP = 1 };
enum socket_io { IO_AUTO = 0, IO_URING = 1, IO_EPOLL = 2 };

struct socket_service {
    char     segment[128];          /* name of the shared memory object */
    uint32_t mode;                  /* enum socket_mode */
    uint32_t io;                    /* enum socket_io; AUTO takes epoll where io_uring is refused */
    uint32_t workers;               /* 1 … 64 */
    int32_t  listen_fds[64];        /* one per worker; they may be the same */
};

/* Run n services until TERM (finish what is open; a second one: at once) or the death of the supervisor. Installs the signal
 * dispositions of the process. error: text of a failure to start. Returns 0, or a negative number when nothing could be started. */
int socket_engine_run(const struct socket_service *services, uint32_t n, int64_t supervisor_pid, char *error, uint32_t error_bytes);
/* cdef:end */

#endif
