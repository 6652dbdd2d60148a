/* A simulated server: FIFO with k workers or processor sharing on k cores, and the link to it.
 *
 * Both disciplines are one machine in virtual time: all flows in service are served at the same rate, so each is done when
 * the server's virtual clock v, which runs at that rate, reaches the v at which it began plus its work. A heap of those
 * marks gives the next completion; a change of rate (of speed, or of the number that share) moves no mark.
 */
#ifndef VICKREY_SIM_SERVER_H
#define VICKREY_SIM_SERVER_H

#include "../core/core.h"
#include "sim.h"

#define NEVER UINT64_MAX

/* One flow from its arrival until it is closed. Never moves: the core links its struct flow. */
struct job {
    struct flow flow;
    struct job *next;               /* in the one list that it is on: queue, link, waiting or free */
    struct job *prev;               /* waiting */
    double   work_ns;
    uint64_t at_ns;                 /* on a link: when it leaves it */
    uint64_t arrived_ns;
    uint64_t key;
    uint64_t number;                /* of the flow, and of its record */
    uint32_t balancer;
    uint32_t sla;                   /* enum sla_class */
    uint16_t retries;
    uint16_t outcome;               /* on the way back: what the balancer will see */
};

struct job_list {
    struct job *head, *tail;
};

struct mark {
    double v;
    struct job *job;
};

struct server {
    double v;                       /* virtual clock: work that a flow in service all along has got, ns at speed 1 */
    double rate;                    /* of v per ns */
    uint64_t at_ns;                 /* when v was right */
    struct mark *marks;             /* 4-ary heap of the flows in service */
    uint32_t running, room;
    uint32_t in_server;             /* running and queued */
    uint32_t workers;
    uint32_t limit;                 /* most that it holds */
    uint32_t service;
    double speed;
    uint64_t id;
    uint64_t delay_ns;
    bool alive, present;
    struct job_list queue, there, back;
    double busy_ns, capacity_ns;
    uint64_t completed, overflowed, lost, refused;
};

static inline void job_append(struct job_list *l, struct job *j)
{
    j->next = NULL;
    if (l->head == NULL)
        l->head = j;
    else
        l->tail->next = j;
    l->tail = j;
}

static inline struct job *job_pop(struct job_list *l)
{
    struct job *j = l->head;
    l->head = j->next;
    return j;
}

int server_init(struct server *s, const struct sim_server *config);
void server_free(struct server *s);

/* Bring clock and integrals up to now_ns. */
static inline void server_advance(struct server *s, uint64_t now_ns)
{
    double dt = (double)(now_ns - s->at_ns);
    uint32_t busy = s->in_server < s->workers ? s->in_server : s->workers;
    s->v += s->rate * dt;
    s->busy_ns += busy * dt;
    s->capacity_ns += s->present ? s->workers * dt : 0.0;
    s->at_ns = now_ns;
}

/* Take a flow in at now_ns. 0, or what becomes of it instead: OUTCOME_CONNECT_FAILED, OUTCOME_SERVER_5XX; -1: no memory. */
int server_enter(struct server *s, struct job *j, uint64_t now_ns);
/* The first flow is done at now_ns: take it out and begin the next. */
struct job *server_complete(struct server *s, uint64_t now_ns);
/* All flows in it, in a fixed order; the server is empty and dead. */
struct job_list server_crash(struct server *s, uint64_t now_ns);
void server_set_speed(struct server *s, uint64_t now_ns, double speed);

/* When the first flow in service will be done. */
static inline uint64_t server_completion_ns(const struct server *s)
{
    if (s->running == 0 || s->rate <= 0)
        return NEVER;
    double dt = (s->marks[0].v - s->v) / s->rate;
    if (dt <= 0)
        return s->at_ns;
    return dt < 0x1p62 ? s->at_ns + (uint64_t)(dt + 0.5) : NEVER;
}

/* When anything next happens at this server or on its link. */
static inline uint64_t server_next_ns(const struct server *s)
{
    uint64_t t = server_completion_ns(s);
    if (s->delay_ns > 0) {
        if (s->there.head != NULL && s->there.head->at_ns < t)
            t = s->there.head->at_ns;
        if (s->back.head != NULL && s->back.head->at_ns < t)
            t = s->back.head->at_ns;
    }
    return t;
}

#endif
