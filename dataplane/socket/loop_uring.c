/* The loop over io_uring: receives into provided buffers, one submission a round, completions run on this thread alone.
 *
 * Small messages come by multishot receives, which stay armed from one request to the next. Back-pressure must hold for each
 * of thousands of slow readers all the same, so they are capped (sqe->optlen, Linux 6.17): after RECEIVE_CAP bytes one ends and
 * is armed again only when its owner asks for more. What came before it was asked for waits in the conn's stash. Without the
 * cap (found out at start), and for large bodies, receives are single-shot.
 */
#ifndef NO_IO_URING
#include "loop.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SQ_ENTRIES 1024
#define CQ_ENTRIES 8192
#define RECEIVE_CAP 32768

enum op { OP_RECEIVE, OP_SEND, OP_CONNECT, OP_ACCEPT, OP_WAKE, OP_CANCEL, OP_MASK = 7 };

static const uint32_t RING_ENTRIES[BUFFER_SIZES] = {128, 16};

struct uring_backend {
    struct io_uring ring;
    struct io_uring_buf_ring *buffers[BUFFER_SIZES];
    uint32_t in_ring[BUFFER_SIZES];          /* buffers that the kernel holds */
    uint32_t prepared;                      /* entries since the last submission: index of the scratch below */
    bool     accept_armed;
    bool     multishot;                     /* capped multishot receives are to be had */
    /* Must stay until the submission. */
    struct msghdr messages[SQ_ENTRIES];
    struct iovec iov[SQ_ENTRIES][OUT_SEGMENTS];
    struct sockaddr_storage addresses[SQ_ENTRIES];
};

static struct uring_backend *backend_of(struct loop *loop)
{
    return loop->backend;
}

static struct io_uring_sqe *take_sqe(struct uring_backend *u)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    while (!sqe || u->prepared == SQ_ENTRIES) {
        io_uring_submit(&u->ring);
        u->prepared = 0;
        if (!sqe)
            sqe = io_uring_get_sqe(&u->ring);
    }
    u->prepared++;
    return sqe;
}

static void mark(struct io_uring_sqe *sqe, void *who, enum op op)
{
    io_uring_sqe_set_data64(sqe, (uint64_t)(uintptr_t)who | op);
}

/* Give the kernel buffers until it has a full ring of them. */
static void refill(struct loop *loop, enum buffer_size size)
{
    struct uring_backend *u = backend_of(loop);
    uint32_t entries = RING_ENTRIES[size], added = 0;
    while (u->in_ring[size] < entries) {
        struct buffer *b = buffer_take(&loop->pools[size]);
        if (!b)
            break;
        io_uring_buf_ring_add(u->buffers[size], b->data + BUFFER_HEADROOM, size == BUFFER_SMALL ? BUFFER_SMALL_READ : BUFFER_BULK_READ,
                              b->id, io_uring_buf_ring_mask(entries), (int)added++);
        u->in_ring[size]++;
    }
    if (added)
        io_uring_buf_ring_advance(u->buffers[size], (int)added);
}

static void arm_wake(struct loop *loop)
{
    struct uring_backend *u = backend_of(loop);
    struct io_uring_sqe *sqe = take_sqe(u);
    io_uring_prep_read(sqe, loop->wake_fd, &loop->wake_value, sizeof loop->wake_value, 0);
    mark(sqe, loop, OP_WAKE);
}

static void prepare_multishot(struct io_uring_sqe *sqe, int fd, uint32_t cap)
{
    io_uring_prep_recv_multishot(sqe, fd, NULL, 0, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = BUFFER_SMALL;
    sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;      /* an answer or the next request is still on its way */
    sqe->file_index = cap;                  /* the field's name for receives is optlen; this header is older than it */
}

/* Does this kernel end a multishot receive at its cap? Older ones refuse the field. */
static bool probe_multishot(struct loop *loop)
{
    struct uring_backend *u = backend_of(loop);
    int pair[2];
#ifdef NO_MULTISHOT                         /* tests take the way of older kernels */
    return false;
#endif
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        return false;
    bool capped = false;
    if (write(pair[1], "12345678", 8) == 8) {
        struct io_uring_cqe *cqe;
        struct __kernel_timespec second = {.tv_sec = 1};
        struct io_uring_sqe *sqe = take_sqe(u);
        prepare_multishot(sqe, pair[0], 4);
        mark(sqe, NULL, OP_CANCEL);         /* whatever else it brings is nobody's */
        io_uring_submit(&u->ring);
        u->prepared = 0;
        if (io_uring_wait_cqe_timeout(&u->ring, &cqe, &second) == 0) {
            capped = cqe->res == 4 && !(cqe->flags & IORING_CQE_F_MORE);
            if (cqe->flags & IORING_CQE_F_BUFFER) {
                struct buffer *buffer = &loop->pools[BUFFER_SMALL].buffers[cqe->flags >> IORING_CQE_BUFFER_SHIFT];
                u->in_ring[BUFFER_SMALL]--;
                buffer_drop(loop->pools, buffer);
            }
            io_uring_cqe_seen(&u->ring, cqe);
        }
    }
    close(pair[0]);
    close(pair[1]);
    return capped;
}

static void uring_free(struct loop *loop)
{
    struct uring_backend *u = backend_of(loop);
    io_uring_queue_exit(&u->ring);
    for (int i = 0; i < BUFFER_SIZES; i++)
        free(u->buffers[i]);
    free(u);
    loop->backend = NULL;
}

static int uring_make(struct loop *loop)
{
    struct uring_backend *u = calloc(1, sizeof *u);
    if (!u)
        return -ENOMEM;
    struct io_uring_params params = {
        .flags = IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN
            | IORING_SETUP_SUBMIT_ALL,
        .cq_entries = CQ_ENTRIES};
    int error = io_uring_queue_init_params(SQ_ENTRIES, &u->ring, &params);
    if (error) {
        free(u);
        return error;
    }
    loop->backend = u;
    for (int i = 0; i < BUFFER_SIZES && !error; i++) {
        size_t bytes = RING_ENTRIES[i] * sizeof(struct io_uring_buf);
        void *memory = NULL;
        if (posix_memalign(&memory, 4096, bytes < 4096 ? 4096 : bytes)) {
            error = -ENOMEM;
            break;
        }
        u->buffers[i] = memory;
        struct io_uring_buf_reg reg = {.ring_addr = (uint64_t)(uintptr_t)memory, .ring_entries = RING_ENTRIES[i], .bgid = (uint16_t)i};
        error = io_uring_register_buf_ring(&u->ring, &reg, 0);
        if (!error) {
            io_uring_buf_ring_init(u->buffers[i]);
            refill(loop, (enum buffer_size)i);
        }
    }
    if (error) {
        uring_free(loop);
        return error;
    }
    u->multishot = probe_multishot(loop);
    refill(loop, BUFFER_SMALL);
    arm_wake(loop);
    return 0;
}

static void uring_attach(struct conn *c)
{
    (void)c;
}

static void uring_receive(struct conn *c)
{
    struct uring_backend *u = backend_of(c->loop);
    if (c->stash_n || c->stash_end <= 0) {
        conn_list(c);
        return;
    }
    if (c->armed)
        return;
    struct io_uring_sqe *sqe = take_sqe(u);
    if (u->multishot && !c->bulk && !c->once) {
        prepare_multishot(sqe, c->fd, RECEIVE_CAP);
        mark(sqe, c, OP_RECEIVE);
        c->armed = true;
        c->ops++;
        return;
    }
    io_uring_prep_recv(sqe, c->fd, NULL, c->bulk ? BUFFER_BULK_READ : BUFFER_SMALL_READ, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = c->bulk ? BUFFER_BULK : BUFFER_SMALL;
    if (!c->bulk)
        sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;  /* an answer or the next request is still on its way */
    mark(sqe, c, OP_RECEIVE);
    c->ops++;
}

static void uring_flush(struct conn *c)
{
    struct uring_backend *u = backend_of(c->loop);
    struct io_uring_sqe *sqe = take_sqe(u);
    if (c->out_n == 1) {
        io_uring_prep_send(sqe, c->fd, c->out[0].at, c->out[0].n, MSG_NOSIGNAL);
    } else {
        uint32_t slot = u->prepared - 1;
        for (uint32_t i = 0; i < c->out_n; i++)
            u->iov[slot][i] = (struct iovec){.iov_base = c->out[i].at, .iov_len = c->out[i].n};
        u->messages[slot] = (struct msghdr){.msg_iov = u->iov[slot], .msg_iovlen = c->out_n};
        io_uring_prep_sendmsg(sqe, c->fd, &u->messages[slot], MSG_NOSIGNAL);
    }
    mark(sqe, c, OP_SEND);
    c->sending = true;
    c->ops++;
}

static void uring_connect(struct conn *c, const struct sockaddr *address, socklen_t bytes)
{
    struct uring_backend *u = backend_of(c->loop);
    struct io_uring_sqe *sqe = take_sqe(u);
    struct sockaddr_storage *copy = &u->addresses[u->prepared - 1];
    memcpy(copy, address, bytes);
    io_uring_prep_connect(sqe, c->fd, (struct sockaddr *)copy, bytes);
    mark(sqe, c, OP_CONNECT);
    c->ops++;
}

static void uring_close(struct conn *c)
{
    if (c->ops) {                           /* the descriptor is closed when the last of them has ended */
        struct uring_backend *u = backend_of(c->loop);
        struct io_uring_sqe *sqe = take_sqe(u);
        io_uring_prep_cancel_fd(sqe, c->fd, IORING_ASYNC_CANCEL_ALL);
        mark(sqe, c, OP_CANCEL);
        c->ops++;
    } else {
        conn_list(c);
    }
}

static void uring_accept(struct loop *loop, bool on)
{
    struct uring_backend *u = backend_of(loop);
    if (on == loop->accepting || loop->listen_fd < 0)
        return;
    loop->accepting = on;
    if (on && !u->accept_armed) {
        struct io_uring_sqe *sqe = take_sqe(u);
        /* One at a time: a multishot accept would empty the whole backlog before anybody could say stop. */
        io_uring_prep_accept(sqe, loop->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        mark(sqe, loop, OP_ACCEPT);
        u->accept_armed = true;
    } else if (!on && u->accept_armed) {
        struct io_uring_sqe *sqe = take_sqe(u);
        io_uring_prep_cancel64(sqe, (uint64_t)(uintptr_t)loop | OP_ACCEPT, 0);
        mark(sqe, NULL, OP_CANCEL);
    }
}

static void finish_accept(struct loop *loop, const struct io_uring_cqe *cqe)
{
    struct uring_backend *u = backend_of(loop);
    u->accept_armed = false;
    if (cqe->res >= 0)
        loop->accepted(loop, cqe->res, 0);
    else if (cqe->res != -ECANCELED && cqe->res != -ECONNABORTED && cqe->res != -EINTR && cqe->res != -EAGAIN)
        loop->accepted(loop, -1, cqe->res);
    if (loop->accepting && !u->accept_armed) {
        loop->accepting = false;
        uring_accept(loop, true);
    }
}

/* Not asked for yet: kept, copied together, since a buffer for each of many small pieces would empty the pool. */
static void stash(struct loop *loop, struct conn *c, struct buffer *from, int n)
{
    if (n <= 0) {
        c->stash_end = n;
        return;
    }
    if (!c->stash && !(c->stash = buffer_take(&loop->pools[BUFFER_BULK]))) {
        buffer_ref(from);                   /* no large one: the bytes stay where they are */
        c->stash = from;
        c->stash_n = (uint32_t)n;
        return;
    }
    if (c->stash_n + (uint32_t)n > (c->stash->size == BUFFER_BULK ? BUFFER_BULK_READ : BUFFER_SMALL_READ)) {
        loop->pool_exhausted++;
        c->stash_end = -ENOBUFS;            /* the stream is broken: its owner will close it */
        return;
    }
    memcpy(c->stash->data + BUFFER_HEADROOM + c->stash_n, from->data + BUFFER_HEADROOM, (uint32_t)n);
    c->stash_n += (uint32_t)n;
}

static void deliver_stash(struct conn *c)
{
    struct buffer *buffer = c->stash;
    int n = c->stash_n ? (int)c->stash_n : c->stash_end;
    c->stash = NULL;
    c->stash_n = 0;
    c->receiving = false;
    c->events->received(c, buffer, buffer ? buffer->data + BUFFER_HEADROOM : NULL, n);
    buffer_drop(c->loop->pools, buffer);
}

static void finish_receive(struct loop *loop, struct conn *c, const struct io_uring_cqe *cqe)
{
    struct uring_backend *u = backend_of(loop);
    struct buffer *buffer = NULL;
    bool multishot = c->armed;
    c->untold--;
    if (!(cqe->flags & IORING_CQE_F_MORE))
        c->armed = false;
    if (cqe->flags & IORING_CQE_F_BUFFER) {
        /* The group is the one asked for when this receive was armed: a multishot's, or c->bulk, which does not change while a
         * single-shot one is under way. */
        enum buffer_size size = c->bulk && !multishot ? BUFFER_BULK : BUFFER_SMALL;
        buffer = &loop->pools[size].buffers[cqe->flags >> IORING_CQE_BUFFER_SHIFT];
        u->in_ring[size]--;
        refill(loop, size);
    }
    if (!c->closed) {
        char *at = buffer ? buffer->data + BUFFER_HEADROOM : NULL;
        if (cqe->res == -ENOBUFS) {         /* the ring was empty: tried again next round, when it is full again */
            if (!c->receiving)
                return;
            if (c->bulk && !loop->pools[BUFFER_BULK].free && !u->in_ring[BUFFER_BULK])
                c->bulk = false;
            if (c->bulk || loop->pools[BUFFER_SMALL].free || u->in_ring[BUFFER_SMALL])
                conn_list(c);
            else
                conn_starve(c);
        } else if (!c->receiving || c->stash_n) {
            stash(loop, c, buffer, cqe->res);
        } else {
            c->receiving = false;
            c->events->received(c, buffer, at, cqe->res);
        }
    }
    buffer_drop(loop->pools, buffer);
}

static void finish_send(struct conn *c, int res)
{
    c->sending = false;
    if (c->closed)
        return;
    if (res < 0) {
        conn_drop_queue(c);
        c->want_drained = false;
        c->events->sent(c, res);
    } else if (!conn_sent(c, (uint32_t)res)) {
        uring_flush(c);
    } else if (c->want_drained) {
        c->want_drained = false;
        c->events->sent(c, 0);
    }
}

static void finish(struct loop *loop, const struct io_uring_cqe *cqe)
{
    enum op op = (enum op)(cqe->user_data & OP_MASK);
    void *who = (void *)(uintptr_t)(cqe->user_data & ~(uint64_t)OP_MASK);
    if (!who)
        return;
    if (op == OP_ACCEPT) {
        finish_accept(loop, cqe);
        return;
    }
    if (op == OP_WAKE) {
        if (cqe->res == 8)
            loop->woken(loop);
        arm_wake(loop);
        return;
    }
    struct conn *c = who;
    if (!(cqe->flags & IORING_CQE_F_MORE))
        c->ops--;
    if (op == OP_RECEIVE) {
        finish_receive(loop, c, cqe);
    } else if (op == OP_SEND) {
        finish_send(c, cqe->res);
    } else if (op == OP_CONNECT && !c->closed) {
        c->connecting = false;
        c->events->connected(c, cqe->res);
    }
    if (c->closed && c->ops == 0)
        conn_list(c);
}

/* Conns to be released, and receives to be tried again. */
static void work_list(struct loop *loop)
{
    for (struct conn *c = loop->ready, *last = loop->ready_last; c; ) {
        bool was_last = c == last;
        loop_next_listed(loop);
        if (c->closed && c->ops) {
            ;                               /* listed before it was closed: once more when the last of its operations has ended */
        } else if (c->closed) {
            conn_drop_queue(c);
            buffer_drop(loop->pools, c->stash);
            c->stash = NULL;
            close(c->fd);
            c->fd = -1;
            conn_release(c);
        } else if (c->receiving && (c->stash_n || c->stash_end <= 0)) {
            deliver_stash(c);
        } else if (c->receiving) {
            uring_receive(c);
        }
        c = was_last ? NULL : loop->ready;
    }
}

static int uring_wait(struct loop *loop, uint64_t timeout_ns)
{
    struct uring_backend *u = backend_of(loop);
    loop_feed(loop, loop->pools[BUFFER_SMALL].n_free + u->in_ring[BUFFER_SMALL]);
    if (loop->ready) {
        refill(loop, BUFFER_SMALL);
        refill(loop, BUFFER_BULK);
        work_list(loop);
        if (loop->ready)
            timeout_ns = 0;
    }
    struct __kernel_timespec ts = {.tv_sec = (int64_t)(timeout_ns / 1000000000u), .tv_nsec = (long long)(timeout_ns % 1000000000u)};
    struct io_uring_cqe *cqe = NULL;
    int error = io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &ts, NULL);
    u->prepared = 0;
    if (error < 0 && error != -ETIME && error != -EINTR && error != -EBUSY && error != -EAGAIN)
        return error;
    loop->awake(loop);
    unsigned head, n = 0, seen = 0;
    io_uring_for_each_cqe(&u->ring, head, cqe) {
        if ((cqe->user_data & OP_MASK) == OP_RECEIVE)
            ((struct conn *)(uintptr_t)cqe->user_data)->untold++;
        if (++n == CQ_ENTRIES / 2)          /* the rest in the next round: timers wait */
            break;
    }
    io_uring_for_each_cqe(&u->ring, head, cqe) {
        if (seen++ == n)
            break;
        struct io_uring_cqe copy = *cqe;
        finish(loop, &copy);
    }
    io_uring_cq_advance(&u->ring, n);
    return 0;
}

const struct loop_ops loop_uring = {
    .name = "io_uring", .make = uring_make, .destroy = uring_free, .attach = uring_attach, .receive = uring_receive,
    .flush = uring_flush, .connect = uring_connect, .close = uring_close, .accept = uring_accept, .wait = uring_wait,
};
#endif
