/* What both back ends share: the queue of segments of a conn, and the choice of the back end. */
#include "loop.h"
#include "engine.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

int loop_make(struct loop *loop, uint32_t io, uint32_t n_small, uint32_t n_bulk, int listen_fd, int wake_fd)
{
    loop->listen_fd = listen_fd;
    loop->wake_fd = wake_fd;
    int error = buffer_pools_make(loop->pools, n_small, n_bulk);
    if (error)
        return error;
    error = -ENOSYS;
#ifndef NO_IO_URING
    if (io != IO_EPOLL) {
        loop->ops = &loop_uring;
        error = loop->ops->make(loop);
    }
#endif
    if (error && io != IO_URING) {
        loop->ops = &loop_epoll;
        error = loop->ops->make(loop);
    }
    if (error)
        buffer_pools_free(loop->pools);
    return error;
}

void loop_destroy(struct loop *loop)
{
    loop->ops->destroy(loop);
    buffer_pools_free(loop->pools);
}

void conn_open(struct loop *loop, struct conn *c, int fd, const struct conn_events *events)
{
    memset(c, 0, offsetof(struct conn, out));
    c->loop = loop;
    c->fd = fd;
    c->events = events;
    c->stash_end = 1;
    loop->n_conns++;
    loop->ops->attach(c);
}

void conn_push(struct conn *c, struct buffer *buffer, char *at, uint32_t n)
{
    if (n == 0)
        return;
    c->out_bytes += n;
    /* Bytes may join a segment that is being sent: the kernel was told its length, and what it sent is taken off the front. */
    if (c->out_n) {
        struct segment_out *last = &c->out[c->out_n - 1];
        if (last->buffer == buffer && buffer && last->at + last->n == at) {
            last->n += n;
            return;
        }
    }
    if (buffer)
        buffer_ref(buffer);
    c->out[c->out_n++] = (struct segment_out){.at = at, .buffer = buffer, .n = n};
}

bool conn_sent(struct conn *c, uint32_t n)
{
    c->out_bytes -= n;
    uint32_t gone = 0;
    while (gone < c->out_n && n >= c->out[gone].n) {
        n -= c->out[gone].n;
        buffer_drop(c->loop->pools, c->out[gone].buffer);
        gone++;
    }
    if (gone) {
        c->out_n = (uint8_t)(c->out_n - gone);
        memmove(c->out, c->out + gone, c->out_n * sizeof c->out[0]);
    }
    if (n) {
        c->out[0].at += n;
        c->out[0].n -= n;
    }
    return c->out_n == 0;
}

void conn_drop_queue(struct conn *c)
{
    for (uint32_t i = 0; i < c->out_n; i++)
        buffer_drop(c->loop->pools, c->out[i].buffer);
    c->out_n = 0;
    c->out_bytes = 0;
}

void conn_shutdown(struct conn *c)
{
    if (!c->closed)
        shutdown(c->fd, SHUT_WR);
}

void conn_close(struct conn *c, bool reset)
{
    if (c->closed)
        return;
    if (reset) {
        struct linger hard = {.l_onoff = 1, .l_linger = 0};
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    }
    c->closed = true;
    c->loop->starved_closed |= c->listed;   /* it may be on that list */
    c->loop->ops->close(c);
}

void conn_list(struct conn *c)
{
    struct loop *loop = c->loop;
    if (c->listed)
        return;
    c->listed = true;
    c->next_ready = NULL;
    if (loop->ready_last)
        loop->ready_last->next_ready = c;
    else
        loop->ready = c;
    loop->ready_last = c;
}

void conn_release(struct conn *c)
{
    c->loop->n_conns--;
    c->events->released(c);
}

void conn_starve(struct conn *c)
{
    struct loop *loop = c->loop;
    loop->pool_exhausted++;
    if (c->listed)
        return;
    c->listed = true;
    c->next_ready = NULL;
    if (loop->starved_last)
        loop->starved_last->next_ready = c;
    else
        loop->starved = c;
    loop->starved_last = c;
}

void loop_feed(struct loop *loop, uint32_t n)
{
    if (loop->starved_closed)               /* to be released */
        n = UINT32_MAX;
    loop->starved_closed = false;
    for (; n > 0 && loop->starved; n--) {
        struct conn *c = loop->starved;
        loop->starved = c->next_ready;
        if (!loop->starved)
            loop->starved_last = NULL;
        c->listed = false;
        conn_list(c);
    }
}

struct conn *loop_next_listed(struct loop *loop)
{
    struct conn *c = loop->ready;
    if (c) {
        loop->ready = c->next_ready;
        if (!loop->ready)
            loop->ready_last = NULL;
        c->listed = false;
    }
    return c;
}
