/* How bytes move: one interface in the manner of completions, with io_uring and epoll behind it.
 *
 * A conn is one stream socket. Its owner asks for one receive at a time (so it never gets more than it asked for: that is the
 * back-pressure), pushes segments to be sent, and is called back. Callbacks of a conn come from loop_wait() alone, never from
 * within a call of the owner's, and none comes after conn_close() but released(), when the memory may be used again.
 *
 * Always: bytes that are being sent stay where they are; a segment holds its buffer until the kernel has taken them.
 */
#ifndef VICKREY_LOOP_H
#define VICKREY_LOOP_H

#include "buffer.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define OUT_SEGMENTS 6

struct conn;
struct loop;

struct segment_out {
    char         *at;
    struct buffer *buffer;                    /* NULL: bytes that live on their own (constants) */
    uint32_t      n;
};

struct conn_events {
    /* A receive ended: n > 0 bytes at at, inside buffer (the callee may take references; the loop drops its own after the
     * call); 0: the peer closed its sending side; < 0: -errno. Another receive must be asked for. */
    void (*received)(struct conn *c, struct buffer *buffer, char *at, int n);
    /* All that was pushed has been sent (error 0), or sending failed (-errno) and the rest was dropped. Only when asked for with
     * want_drained, or on failure. */
    void (*sent)(struct conn *c, int error);
    /* A connection attempt ended: 0 or -errno. */
    void (*connected)(struct conn *c, int error);
    /* After conn_close(): the loop has no more use for the conn. */
    void (*released)(struct conn *c);
};

struct conn {
    const struct conn_events *events;
    struct loop *loop;
    struct conn *next_ready;                /* next on that list */
    int      fd;
    uint8_t  ops;                           /* io_uring: operations that still refer to this conn */
    uint8_t  out_n;                         /* segments waiting, the one being sent included */
    bool     receiving;                     /* a receive is asked for */
    bool     bulk;                          /* … into a large buffer */
    bool     sending;                       /* io_uring: a send is under way; epoll: waits to become writable */
    bool     connecting;
    bool     closed;                        /* by the owner */
    bool     want_drained;
    bool     readable, writable;            /* epoll: what the socket is known to be */
    bool     listed;                        /* on the loop's list of conns to look at this round, or of those that starve */
    bool     hup;                           /* epoll: the peer has ended its side, or the socket failed */
    bool     registered;                    /* epoll: known to the kernel's interest list */
    bool     armed;                         /* io_uring: a multishot receive stands */
    bool     once;                          /* set by the owner: likely to be closed after one message; no standing receive */
    uint16_t untold;                        /* io_uring: receives that ended and are still to be told of this round */
    int      stash_end;                     /* io_uring: 1, or what ended the stream behind the stash: 0 or -errno */
    uint32_t stash_n;
    struct buffer *stash;                   /* io_uring: bytes that came before they were asked for, at most RECEIVE_CAP */
    int      failed;                        /* epoll: -errno still to be reported by sent() */
    uint32_t out_bytes;
    struct segment_out out[OUT_SEGMENTS];
};

struct loop_ops;

struct loop {
    const struct loop_ops *ops;
    void    *owner;
    /* Called with each accepted connection; error < 0: accepting failed and is paused until loop_accept(). */
    void   (*accepted)(struct loop *loop, int fd, int error);
    /* The wait is over, callbacks follow. */
    void   (*awake)(struct loop *loop);
    /* The other workers' wake-up descriptor fired. */
    void   (*woken)(struct loop *loop);
    struct buffer_pool pools[BUFFER_SIZES];
    uint64_t pool_exhausted;
    uint32_t n_conns;                       /* opened and not yet released */
    int      listen_fd;                     /* -1: closed */
    int      wake_fd;                       /* eventfd */
    bool     accepting;
    uint64_t wake_value;
    struct conn *ready, *ready_last;        /* conns to look at this round */
    struct conn *starved, *starved_last;    /* conns whose receive waits for a buffer */
    bool     starved_closed;                /* one of them was closed */
    void    *backend;                       /* the back end's own */
};

struct loop_ops {
    const char *name;
    int  (*make)(struct loop *loop);                            /* 0 or -errno */
    void (*destroy)(struct loop *loop);
    void (*attach)(struct conn *c);                             /* a new conn whose fd is open */
    void (*receive)(struct conn *c);
    void (*flush)(struct conn *c);
    void (*connect)(struct conn *c, const struct sockaddr *address, socklen_t bytes);
    void (*close)(struct conn *c);
    void (*accept)(struct loop *loop, bool on);
    int  (*wait)(struct loop *loop, uint64_t timeout_ns);       /* 0 or -errno */
};

extern const struct loop_ops loop_epoll;
#ifndef NO_IO_URING
extern const struct loop_ops loop_uring;
#endif

/* Make a loop; pools of n_small and n_bulk buffers. io: enum socket_io. 0 or -errno. */
int  loop_make(struct loop *loop, uint32_t io, uint32_t n_small, uint32_t n_bulk, int listen_fd, int wake_fd);
void loop_destroy(struct loop *loop);

static inline void loop_accept(struct loop *loop, bool on) { loop->ops->accept(loop, on); }
static inline int  loop_wait(struct loop *loop, uint64_t timeout_ns) { return loop->ops->wait(loop, timeout_ns); }

/* Begin the life of a conn over an open, non-blocking descriptor. */
void conn_open(struct loop *loop, struct conn *c, int fd, const struct conn_events *events);

/* Ask for one receive. Does nothing when one is asked for already. */
static inline void conn_receive(struct conn *c, bool bulk)
{
    if (!c->receiving && !c->closed) {
        c->receiving = true;
        c->bulk = bulk;
        c->loop->ops->receive(c);
    }
}

/* Has nothing come, as far as is known without a system call, that received() has not told of yet? */
static inline bool conn_is_quiet(const struct conn *c)
{
    return !c->readable && !c->untold && !c->stash_n && c->stash_end > 0;
}

/* Room for another segment. */
static inline bool conn_has_room(const struct conn *c)
{
    return c->out_n < OUT_SEGMENTS;
}

/* Queue n bytes; takes a reference on buffer (may be NULL). Adjacent bytes of one buffer join the last segment.
 * The caller made sure of conn_has_room(). Sends nothing before conn_flush(). */
void conn_push(struct conn *c, struct buffer *buffer, char *at, uint32_t n);

/* Send what is queued. With epoll much of it may be gone when this returns. */
static inline void conn_flush(struct conn *c)
{
    if (c->out_n && !c->sending && !c->connecting && !c->closed)
        c->loop->ops->flush(c);
}

static inline void conn_connect(struct conn *c, const struct sockaddr *address, socklen_t bytes)
{
    c->connecting = true;
    c->loop->ops->connect(c, address, bytes);
}

/* Close our sending side after what was sent so far. Call it when nothing is queued. */
void conn_shutdown(struct conn *c);
/* Drop what is queued and close. reset: the peer sees a reset, not an orderly end. */
void conn_close(struct conn *c, bool reset);

/* For the back ends: put c on the list of conns to look at, and take the first off it. */
void conn_list(struct conn *c);
/* No buffer for c's receive: it is looked at again once there is one. Called at the start of a round: n buffers
 * are there, as many conns are looked at. */
void conn_starve(struct conn *c);
void loop_feed(struct loop *loop, uint32_t n);
struct conn *loop_next_listed(struct loop *loop);
/* The loop is done with c, which is closed. */
void conn_release(struct conn *c);
/* n bytes of the queue were sent; true when it is empty now. And drop all of it. */
bool conn_sent(struct conn *c, uint32_t n);
void conn_drop_queue(struct conn *c);

#endif
