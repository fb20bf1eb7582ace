/*
 * example.c: a program that receives, sends and feeds its watchdog in one event loop. Start it under zhx, or by hand:
 *
 *   cc -std=c99 -o example example.c zhx.c && ZHX_NAME=example ./example
 */
#define _POSIX_C_SOURCE 200809L
#include "zhx.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static int on_event(zhx *h, struct zhx_event *e, void *arg)
{
    (void)arg;
    switch (e->type) {
    case ZHX_EV_UP: /* register, subscribe and watch once: the library does it again after a lost connection */
        printf("connected\n");
        break;
    case ZHX_EV_MESSAGE: /* acknowledged by returning ZHX_DONE, if the sender asked for it */
        printf("%s says: %.*s\n", e->from, (int)e->len, (const char *)e->body);
        break;
    case ZHX_EV_REQUEST: zhx_reply(h, e->session, e->id, 0, "25.4", 4); break;
    case ZHX_EV_STATE: printf("%s is now in state %d\n", e->to, e->code); break;
    case ZHX_EV_ERROR: fprintf(stderr, "%s: %s\n", e->to, zhx_word(e->code)); break;
    case ZHX_EV_TAKEN: fprintf(stderr, "another process is %s now\n", e->to); break;
    }
    return ZHX_DONE;
}

static int seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int)t.tv_sec;
}

int main(void)
{
    struct zhx_options o;
    int error, last = 0;
    zhx *h;
    memset(&o, 0, sizeof o);
    o.handler = on_event;
    o.flags = ZHX_OPTIONAL; /* runs without zhx too */
    h = zhx_open(&o, &error);
    if (!h) {
        fprintf(stderr, "zhx: %s\n", zhx_word(error));
        return 1;
    }
    zhx_arm(h, NULL);
    zhx_watch(h, "client2");
    for (;;) {
        struct pollfd p[1]; /* the program's own descriptors go beside it */
        int wait = zhx_timeout(h);
        p[0].fd = zhx_fd(h), p[0].events = zhx_events(h), p[0].revents = 0;
        poll(p, 1, wait >= 0 && wait < 1000 ? wait : 1000);
        if (zhx_process(h, 0) == ZHX_TAKEN) break;
        if (seconds() == last) continue;
        last = seconds();
        zhx_feed(h, NULL); /* once a second, by the loop that does the work: if it hangs, the feed fails to come */
        zhx_send(h, "client2", ZHX_HANDLED, "ping", 4, NULL);
    }
    zhx_close(h);
    return 1;
}
