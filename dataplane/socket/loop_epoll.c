/* The loop over epoll, edge-triggered: each socket is registered once, and what it can do is remembered.
 *
 * A conn that has something to do stands on the loop's list; loop_wait() works the list off. Sending is tried at once.
 */
#include "loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

#define EVENTS 512
#define ACCEPTS_A_ROUND 64

struct epoll_backend {
    int fd;
    struct epoll_event events[EVENTS];
};

static int epoll_fd(const struct loop *loop)
{
    return ((const struct epoll_backend *)loop->backend)->fd;
}

static int watch(struct loop *loop, int fd, uint32_t what, void *who)
{
    struct epoll_event event = {.events = what, .data.ptr = who};
    return epoll_ctl(epoll_fd(loop), EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

static int epoll_make(struct loop *loop)
{
    struct epoll_backend *backend = calloc(1, sizeof *backend);
    if (!backend)
        return -ENOMEM;
    loop->backend = backend;
    backend->fd = epoll_create1(EPOLL_CLOEXEC);
    int error = backend->fd < 0 ? -errno : watch(loop, loop->wake_fd, EPOLLIN, &loop->wake_fd);
    if (error) {
        if (backend->fd >= 0)
            close(backend->fd);
        free(backend);
        loop->backend = NULL;
    }
    return error;
}

static void epoll_destroy(struct loop *loop)
{
    close(epoll_fd(loop));
    free(loop->backend);
    loop->backend = NULL;
}

/* Registered with its first wish: a socket that is not yet connecting would report itself hung up. */
static void epoll_attach(struct conn *c)
{
    c->writable = true;
}

static void register_conn(struct conn *c)
{
    if (c->registered)
        return;
    c->registered = true;
    int error = watch(c->loop, c->fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, c);
    if (error) {
        c->failed = error;
        c->hup = c->readable = true;
        conn_list(c);
    }
}

static void epoll_receive(struct conn *c)
{
    register_conn(c);
    if (c->readable)
        conn_list(c);
}

static void epoll_flush(struct conn *c)
{
    register_conn(c);
    while (c->out_n && c->writable) {
        struct iovec iov[OUT_SEGMENTS];
        for (uint32_t i = 0; i < c->out_n; i++)
            iov[i] = (struct iovec){.iov_base = c->out[i].at, .iov_len = c->out[i].n};
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = c->out_n};
        ssize_t n = c->out_n == 1 ? send(c->fd, c->out[0].at, c->out[0].n, MSG_NOSIGNAL | MSG_DONTWAIT)
                                  : sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            c->writable = false;
        } else if (n < 0) {
            c->failed = -errno;
            conn_drop_queue(c);
            conn_list(c);
        } else {
            conn_sent(c, (uint32_t)n);
        }
    }
    c->sending = c->out_n > 0;
    if (c->out_n == 0 && c->want_drained)
        conn_list(c);
}

static void epoll_connect(struct conn *c, const struct sockaddr *address, socklen_t bytes)
{
    c->writable = false;
    int rc;
    do
        rc = connect(c->fd, address, bytes);
    while (rc && errno == EINTR);
    if (rc && errno != EINPROGRESS) {
        c->failed = -errno;
        c->registered = true;               /* never to be registered: it failed */
        conn_list(c);
        return;
    }
    register_conn(c);
}

static void epoll_close(struct conn *c)
{
    conn_drop_queue(c);
    close(c->fd);
    c->fd = -1;
    conn_list(c);                           /* to be released there */
}

static void epoll_accept(struct loop *loop, bool on)
{
    if (on == loop->accepting || loop->listen_fd < 0)
        return;
    loop->accepting = on;
    if (on)
        watch(loop, loop->listen_fd, EPOLLIN | EPOLLEXCLUSIVE, &loop->listen_fd);
    else
        epoll_ctl(epoll_fd(loop), EPOLL_CTL_DEL, loop->listen_fd, NULL);
}

static void accept_some(struct loop *loop)
{
    for (int i = 0; i < ACCEPTS_A_ROUND && loop->accepting; i++) {
        int fd = accept4(loop->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0)
            loop->accepted(loop, fd, 0);
        else if (errno == EAGAIN)
            return;
        else if (errno != EINTR && errno != ECONNABORTED) {
            loop->accepted(loop, -1, -errno);
            return;
        }
    }
}

static void receive_some(struct conn *c)
{
    struct loop *loop = c->loop;
    struct buffer *buffer = c->bulk ? buffer_take(&loop->pools[BUFFER_BULK]) : NULL;
    if (!buffer)
        buffer = buffer_take(&loop->pools[BUFFER_SMALL]);
    if (!buffer) {
        conn_starve(c);
        return;
    }
    size_t room = buffer->size == BUFFER_BULK ? BUFFER_BULK_READ : BUFFER_SMALL_READ;
    char *at = buffer->data + BUFFER_HEADROOM;
    ssize_t n;
    do
        n = recv(c->fd, at, room, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN) {
        c->readable = c->hup;
    } else {
        if (n > 0 && (size_t)n < room)
            c->readable = c->hup;           /* emptied; a hang-up is still to be read */
        c->receiving = false;
        c->events->received(c, buffer, at, n < 0 ? -errno : (int)n);
    }
    buffer_drop(loop->pools, buffer);
}

/* Everything a listed conn has to do. A callback may close it: then it is listed again, to be released. */
static void serve(struct conn *c)
{
    if (c->closed) {
        conn_release(c);
        return;
    }
    if (c->connecting) {
        int error = c->failed;
        socklen_t bytes = sizeof error;
        if (!error && !c->writable && !c->hup)
            return;
        if (!error && getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &bytes) == 0)
            error = -error;
        c->connecting = false;
        c->failed = 0;
        if (!error)
            c->writable = true;
        c->events->connected(c, error);
        return;
    }
    if (c->failed) {
        int error = c->failed;
        c->failed = 0;
        c->sending = c->want_drained = false;
        c->events->sent(c, error);
        if (c->closed)
            return;
    }
    if (c->out_n && c->writable)
        epoll_flush(c);
    if (!c->out_n && c->want_drained && !c->failed) {
        c->want_drained = false;
        c->events->sent(c, 0);
        if (c->closed)
            return;
    }
    if (c->receiving && c->readable)
        receive_some(c);
}

static int epoll_wait_(struct loop *loop, uint64_t timeout_ns)
{
    struct epoll_backend *backend = loop->backend;
    loop_feed(loop, loop->pools[BUFFER_SMALL].n_free);
    int timeout_ms = loop->ready ? 0 : timeout_ns > 60000000000ULL ? 60000 : (int)((timeout_ns + 999999) / 1000000);
    int n = epoll_wait(backend->fd, backend->events, EVENTS, timeout_ms);
    if (n < 0 && errno != EINTR)
        return -errno;
    loop->awake(loop);
    bool listening = false;
    for (int i = 0; i < n; i++) {
        struct epoll_event *event = &backend->events[i];
        if (event->data.ptr == &loop->listen_fd) {
            listening = true;
        } else if (event->data.ptr == &loop->wake_fd) {
            if (read(loop->wake_fd, &loop->wake_value, 8) == 8)
                loop->woken(loop);
        } else {
            struct conn *c = event->data.ptr;
            if (event->events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
                c->hup = c->readable = true;
            if (event->events & EPOLLIN)
                c->readable = true;
            if (event->events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
                c->writable = true;
            conn_list(c);
        }
    }
    /* Only what stands there now: what is listed while this is worked off waits for the next round. */
    struct conn *last = loop->ready_last, *c;
    if (last)
        do {
            c = loop_next_listed(loop);
            if (!c)
                break;
            bool was_last = c == last;
            serve(c);
            if (was_last)
                break;
        } while (true);
    if (listening)
        accept_some(loop);
    return 0;
}

const struct loop_ops loop_epoll = {
    .name = "epoll", .make = epoll_make, .destroy = epoll_destroy, .attach = epoll_attach, .receive = epoll_receive,
    .flush = epoll_flush, .connect = epoll_connect, .close = epoll_close, .accept = epoll_accept, .wait = epoll_wait_,
};
