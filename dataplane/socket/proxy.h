/* The life of a connection, shared by the files proxy_*.c: sessions (clients), upstreams (servers), and their worker.
 *
 *     client ──► session ──(dispatch: which server)──► upstream ──► server
 *
 * A session is one client connection; in http mode it carries one exchange (request and answer) at a time. An upstream is one
 * connection to a server; it belongs to one session, or waits in its server's pool for the next.
 *
 *     proxy_accept.c    clients come in, within the limits
 *     proxy_session.c   input of the client, errors answered here, the end
 *     proxy_request.c   request heads and bodies, to the server
 *     proxy_response.c  answers, back to the client
 *     proxy_body.c      bodies in either direction: lengths, chunks, until close
 *     proxy_upstream.c  connect, pool, retry
 *     proxy_queue.c     flows that wait for a server below its maxconn
 *     proxy_tunnel.c    bytes both ways: tcp mode, WebSocket
 *     worker.c          the round: wait, timers, housekeeping
 */
#ifndef VICKREY_PROXY_H
#define VICKREY_PROXY_H

#include "../core/core.h"
#include "http.h"
#include "loop.h"
#include "timer.h"

#include <stdatomic.h>

#define BACKLOG_BYTES 32768                 /* unsent bytes towards one peer above which the other side is not read */
#define CLIENT_TEXT 46                      /* an IPv6 address as text */

enum session_state {
    SESSION_FREE = 0,
    SESSION_HEAD,                           /* waits for (the rest of) a request head */
    SESSION_QUEUED,                         /* waits for a server */
    SESSION_CONNECTING,
    SESSION_EXCHANGE,                       /* request under way, or its answer */
    SESSION_TUNNEL,
    SESSION_FLUSH,                          /* last answer is being sent, then close */
    SESSION_LINGER                          /* our side is closed; read until the client closes, so that it sees the answer */
};

/* A body on its way: how it is framed where it comes from and where it goes. */
struct body {
    uint8_t  from, to;                      /* enum framing */
    bool     done;
    uint64_t left;                          /* FRAME_LENGTH: bytes still to come */
    struct chunked chunks;
    struct buffer *trailers;                /* "0\r\n" and the trailer fields that came, until they are sent */
};

struct session {
    struct conn client;
    struct timer timer;
    struct worker_state *worker;
    struct upstream *up;
    struct session *next, *prev;            /* in the worker's list of open sessions */
    struct session *queue_next, *queue_prev;
    uint8_t  state;
    uint8_t  method, minor;
    uint8_t  attempts;                      /* servers tried */
    bool     keep_alive;                    /* the client may send another request afterwards */
    bool     client_eof;                    /* the client's sending side is closed */
    bool     probed;                        /* … and it was seen still to be there */
    bool     head_sent;                     /* the answer's head went to the client */
    bool     request_begun;                 /* bytes of the request went to a server */
    bool     replayable;                    /* GET, HEAD, OPTIONS without a body, held whole */
    bool     upgrade;
    bool     trusted;                       /* the client is a known proxy */
    uint16_t status;
    uint16_t client_port;
    /* Input of the client that was not consumed yet. */
    struct buffer *in;
    char    *in_at, *in_floor;              /* in_floor: bytes before it must stay */
    uint32_t in_n;
    /* The request as it goes to a server: held until it is sent, or until it can no longer be replayed. */
    uint32_t held_n;
    char    *held_at;
    struct buffer *held;
    struct body request, response;
    struct flow flow;
    uint64_t queued_ns, opened_ns, dispatched_ns, connected_ns, first_byte_ns;
    uint64_t bytes_in, bytes_out;
    uint32_t backlog_then;                  /* unsent bytes when the client's timer ran out last */
    float    bid, price, load;
    uint32_t rule;
    uint32_t waiting;                       /* flows that waited before it when it was dispatched */
    uint8_t  sla;                           /* enum sla_class */
    uint8_t  route;                         /* 0: none of the settings' */
    uint8_t  handoff;
    uint16_t failed[4];                     /* servers that failed this request, the last first */
    uint8_t  n_failed;
    uint8_t  client_address[16];
    char     client_text[CLIENT_TEXT];
    uint8_t  client_text_n;
    uint8_t  key_n;
    char     websocket_key[32];
    char    *target;                        /* for the log: in the worker's store, NULL unless logged */
    uint32_t target_n;
};

struct upstream {
    struct conn conn;
    struct timer timer;
    struct worker_state *worker;
    struct session *session;                /* NULL: idle */
    struct upstream *next, *prev;           /* idle list of its server, most recent first */
    uint64_t server_id;
    uint32_t server;
    uint32_t backlog_then;                  /* unsent bytes when the server's timer ran out last */
    bool     reused;
    bool     eof;
    bool     deaf;                          /* sending to it failed: it reads no further */
    bool     keep_alive;                    /* its last answer leaves it open */
    /* Head of an answer that is not whole yet, or that waits for room towards the client. */
    struct buffer *in;
    char    *in_at;
    uint32_t in_n;
};

/* What the others see of a worker's queue. Writer: that worker. */
struct line {
    _Atomic uint64_t since_ns[SLA_CLASSES]; /* the first of the class waits since then; 0: nobody does */
    uint8_t  pad[40];                       /* a cache line each */
};

/* One service; shared by its workers. */
struct service {
    void    *segment;
    uint64_t segment_bytes;
    uint32_t mode;
    uint32_t workers;
    _Atomic uint64_t waiters;               /* bit w: flows wait in worker w */
    _Atomic uint64_t woken;                 /* bit w: worker w was woken for its first flow, and has not looked yet */
    _Atomic uint64_t full;                  /* bit w: no server had room when worker w looked last */
    _Atomic uint32_t waiting[SLA_CLASSES];  /* flows that wait, over all workers */
    _Atomic uint32_t turns;                 /* flows that left the queues for a server */
    struct line lines[64];
    int      wake_fds[64];
};

/* What an auction came to. */
enum verdict {
    VERDICT_GONE,                           /* the flow has its server, or was answered */
    VERDICT_FULL,                           /* no server has room */
    VERDICT_HELD                            /* there is room, but the reserve holds the flow back */
};

struct waiting_list {
    struct session *first, *last;
};

struct session_list {
    struct session *first, *last;
    uint32_t n;
};

struct worker_state {
    struct loop loop;
    struct timers timers;
    struct balancer *balancer;
    const struct settings *settings;
    struct worker *counters;
    struct service *service;
    const atomic_int *stop;                 /* 0 run, 1 finish, 2 at once */
    uint32_t index;
    uint64_t now_ns;
    uint64_t wait_until_ns;                 /* the wait that is under way, or was last, was to end then at the latest */
    uint64_t paused_ns;                     /* time that the machine stood still: timers do not count it */
    struct session_list sessions;
    struct waiting_list queue[SLA_CLASSES];
    uint32_t queue_n;
    bool     full;                          /* as the service's bit of this worker */
    float    held_bid, idle_bid;            /* of the flow that was held last: the lowest, and that server's when it is idle */
    bool     yields;                        /* it was held for those that wait before it */
    atomic_int barrier;                     /* only ever exchanged, see queue_wake() */
    struct session *sessions_memory, *sessions_free;
    struct upstream *upstreams_memory, *upstreams_free;
    struct upstream **idle;                 /* by server slot */
    uint32_t *idle_n;
    char    *targets;                       /* room for the targets of open sessions, when they are logged */
    uint32_t session_slots, upstream_slots, server_slots;
    uint32_t idle_up_max;                   /* pooled connections: sessions always find slots for their own */
    uint32_t session_limit;                 /* of the slots: the rest is for connections that are being closed */
    uint32_t sessions_used, upstreams_used; /* slots handed out so far: memory is touched when it is first needed */
    uint64_t accept_again_ns;               /* accepting is paused until then; 0: it is not */
    int      fd_limit;                      /* accepting pauses when a descriptor reaches it */
    double   retry_tokens;
    bool     draining;
    bool     freed;                         /* a server may have got room, or be cheaper, since the queue was last looked at */
    uint64_t directive_seen, fallback_seen; /* in force at the last look */
    uint64_t drain_begun_ns;
    struct http_head head;
    char     scratch[HTTP_HEAD_MAX + 2048];
};

/* Take a slot: one that was given back, or the next that was never used. NULL: none is left. */
static inline struct session *session_take(struct worker_state *w)
{
    struct session *s = w->sessions_free;
    if (s)
        w->sessions_free = s->next;
    else if (w->sessions_used < w->session_slots)
        s = &w->sessions_memory[w->sessions_used++];
    return s;
}

static inline struct upstream *upstream_take_slot(struct worker_state *w)
{
    struct upstream *up = w->upstreams_free;
    if (up)
        w->upstreams_free = up->next;
    else if (w->upstreams_used < w->upstream_slots)
        up = &w->upstreams_memory[w->upstreams_used++];
    return up;
}

/* Durations of our own, not configured. */
#define FD_RESERVE 32                       /* descriptors that clients do not get: for their servers' connections */
#define LINGER_NS 1000000000ULL             /* at most, reading a closed client empty */
#define ABORT_PROBE_NS 1000000000ULL        /* after a client's end of file, before it is asked whether it is there */
#define LOOK_NS 50000000ULL                 /* a client that ends with this answer is read only if that takes longer */
#define IDLE_UP_NS 4000000000ULL            /* a pooled connection: below the 5 s at which common servers close theirs */
#define IDLE_UP_MAX 256                     /* pooled connections per server and worker */
#define IDLE_GRACE_NS 1000000000ULL         /* draining: idle clients may send one more request for so long */

/* Counters in the segment have one writer, this thread; readers are other processes. */
#define COUNT(w, field, n) \
    __atomic_store_n(&(w)->counters->field, (w)->counters->field + (uint64_t)(n), __ATOMIC_RELAXED)

static inline uint64_t timer_now(const struct worker_state *w) { return w->now_ns - w->paused_ns; }
static inline void arm_timer(struct worker_state *w, struct timer *t, enum timer_kind kind, uint64_t duration_ns)
{
    timer_set(&w->timers, t, kind, timer_now(w) + duration_ns);
}
static inline struct session *session_of(struct conn *c) { return (struct session *)c; }
static inline struct upstream *upstream_of(struct conn *c) { return (struct upstream *)c; }
/* Not to be sent more for now. When it is not, there is room for three segments. */
static inline bool backlogged(const struct conn *c) { return c->out_bytes >= BACKLOG_BYTES || c->out_n > OUT_SEGMENTS - 3; }

/* proxy_accept.c */
void session_accepted(struct loop *loop, int fd, int error);
void session_limit_changed(struct worker_state *w);
void session_accept_again(struct worker_state *w);              /* if accepting is paused and another client may come in */
/* proxy_session.c */
extern const struct conn_events session_events;
void session_pump(struct session *s);                           /* parse and start what has arrived */
bool session_keep_input(struct session *s, struct buffer *buffer, char *at, uint32_t n);
void session_drop_input(struct session *s);
void session_answer(struct session *s, unsigned status, char termination, enum outcome outcome);
void session_close(struct session *s, bool reset);
void session_finish(struct session *s);                         /* close once everything is sent */
void session_abort(struct session *s, char termination, enum outcome outcome);
void session_end_flow(struct session *s, char termination, enum outcome outcome);
void session_expired(struct session *s, enum timer_kind kind);
void session_watch(struct session *s);                          /* the exchange goes on: time whoever keeps it waiting */
/* proxy_request.c */
bool request_start(struct session *s, uint32_t head_bytes);     /* false: the session was answered or closed */
void request_dispatch(struct session *s);                       /* a new flow, or one whose server failed it */
/* Hold the auction for it, with so many flows waiting before it; unheld: whatever the reserve says. */
enum verdict request_try(struct session *s, uint32_t before, bool unheld);
void request_send(struct session *s);
void request_body(struct session *s, struct buffer *buffer, char *at, uint32_t n);
void request_drop_held(struct session *s);
/* proxy_response.c */
void response_received(struct session *s, struct upstream *up, struct buffer *buffer, char *at, uint32_t n);
void response_eof(struct session *s, struct upstream *up);
void response_resume(struct session *s, struct upstream *up);   /* the client has taken all that it was sent */
/* proxy_body.c: forward what n bytes hold of the body to dst; room for two segments is there. Bytes consumed, -1: malformed.
 * floor: the lowest address that may be overwritten in front of at. head_n bytes at head go in front. */
int64_t body_forward(struct body *body, struct conn *dst, struct buffer *buffer, char *at, uint32_t n, char *floor, const char *head,
                     uint32_t head_n);
void body_begin(struct body *body, enum framing from, enum framing to, uint64_t length);
void body_drop(struct body *body, struct buffer_pool pools[BUFFER_SIZES]);
/* proxy_upstream.c */
extern const struct conn_events upstream_events;
bool upstream_take(struct session *s, uint32_t server);         /* s->up is connected or connecting; false: no descriptor or memory */
void upstream_release(struct upstream *up, bool reusable);      /* back to the pool, or closed */
void upstream_close(struct upstream *up);
void upstream_expired(struct upstream *up, enum timer_kind kind);
void upstream_failed(struct session *s, enum outcome outcome, unsigned status, char termination);
void upstream_purge(struct worker_state *w);                    /* close pooled connections of servers that are gone */
/* proxy_class.c */
void class_of_request(struct session *s, const struct http_head *head);
/* proxy_queue.c */
/* Flows that wait and go before one of this class that comes now; *look_due: somebody is about to look for them. */
uint32_t queue_before(const struct worker_state *w, uint32_t sla, bool *look_due);
void queue_add(struct session *s, enum verdict why);            /* or 503 when there is no room */
void queue_remove(struct session *s);
void queue_wake(struct worker_state *w);                        /* a place may have become free, or cheap enough */
/* proxy_tunnel.c */
void tunnel_start(struct session *s);
void tunnel_connected(struct session *s);
void tunnel_received(struct session *s, bool from_client, struct buffer *buffer, char *at, int n);
void tunnel_sent(struct session *s, bool to_client, int error);
/* worker.c */
int  worker_make(struct worker_state *w, struct service *service, uint32_t index, uint32_t io, int listen_fd, const atomic_int *stop);
int  worker_run(struct worker_state *w);
void worker_destroy(struct worker_state *w);
uint64_t worker_clock_ns(void);

#endif
