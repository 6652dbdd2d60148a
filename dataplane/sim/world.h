/* All of one simulation, and what the event loop (sim.c) asks of the world around it (world.c). */
#ifndef VICKREY_SIM_WORLD_H
#define VICKREY_SIM_WORLD_H

#include "server.h"
#include "source.h"

struct job_chunk {
    struct job_chunk *next;
    struct job jobs[];
};

/* The flows that wait at one balancer, in order of arrival within their class. */
struct waiting {
    struct job *head[SLA_CLASSES], *tail[SLA_CLASSES];
    uint32_t n[SLA_CLASSES];
    uint32_t passed[SLA_CLASSES];   /* flows of better classes that left since one of this class could last have left */
};

struct sim {
    uint64_t now_ns;                /* since the start */
    uint64_t next_tick_ns;
    uint64_t *tree;                 /* tournament over the servers: [1] the earliest instant, [leaves + i] server i's */
    uint32_t leaves;                /* a power of two */
    int error;                      /* sticky */
    bool releasing;
    struct server *servers;
    struct balancer **balancers;
    struct waiting *waiting;        /* per balancer */
    struct job *free_jobs;
    struct job_chunk *chunks;
    struct sim_totals totals;
    struct source source;
    struct sim_config config;       /* its arrays but records are not to be used after sim_create() */

    struct sim_event *events;       /* sorted by time from next_event on */
    uint64_t next_event, n_events, events_room;

    void **segments;                /* per balancer */
    uint8_t *settings;              /* payload: struct settings, then the entries */
    uint64_t settings_bytes;
};

/* Bring the tree up to date after a change at a server. */
void sim_touch(struct sim *sim, uint32_t server);
/* A server has crashed: its flows are on their way back. */
void sim_lose_flows(struct sim *sim, uint32_t server);
/* Do a scheduled event; true when the balancers have something new to take over. */
bool sim_apply(struct sim *sim, struct sim_event event);

#endif
