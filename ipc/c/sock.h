/*
 * sock.h: the client's side of the prototype's interface, on top of zhx.h. A program written for the prototype is compiled
 * with this folder (-I) in place of the prototype's sock.h, am5728.h and socket.c, linked with sock.c, zhx.c and -pthread, and needs
 * no edit. Take the prototype's three files away: a compiler looks beside the program first (then it does not link, see
 * client_socket). It gains:
 *
 * - names of up to 64 bytes (a program that copies a name out of a PACKET into ten bytes of its own must not be sent longer ones);
 * - reconnection: the descriptor that client_socket returns stays valid while zhxd restarts. What is sent meanwhile waits and
 *   arrives; a read waits too, and does not return 0;
 * - acknowledged delivery: a message is sent again until the receiving program has read it, and given to it once;
 * - safety: nothing overflows, no SIGPIPE, a read gets a whole PACKET, the descriptor closes on exec, messages that could not be
 *   delivered are told on standard error, and exit() waits up to a second for what was sent last.
 *
 * How: the descriptor is one end of a socket pair within this process. A thread of sock.c at its other end speaks protocol 2 with
 * zhxd, by a zhx handle of its own. So the layout of PACKET is no longer anybody else's business, and it differs from that of
 * protocol 1: a program must take its size from MSG_LEGHTN, and may mix with programs that speak protocol 1.
 *
 * The socket is $ZHX_SOCKET, else /run/zhx/zhx.sock. There is one thread for each client_socket, until its descriptor is closed,
 * and at most SOCK_MAX of them. fork() leaves them in the parent: call client_socket after it. Each function may be called from any
 * thread. The server's half of the prototype's interface (tables, server_socket, msg_option) is zhxd now, and not here.
 */
#ifndef ZHX_SOCK_H
#define ZHX_SOCK_H

#include "am5728.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CMD_RECV 0     /* PACKET.cmd: this connection receives what is sent to source_name */
#define CMD_WDT 1      /* the watchdog of source_name, see wdt */
#define CMD_TRANSFER 2 /* msg goes from source_name to target_name */
#define WDT_REGISTER 0 /* PACKET.wdt with CMD_WDT: arms the watchdog */
#define WDT_SIGNAL 1   /* feeds it */
#define CLI_NUM 10     /* the prototype's limit of clients; nothing is limited by it here */
#define SOCK_MAX 16    /* client_sockets of one process */

typedef struct {
    char head[10];        /* "head" */
    int cmd;              /* CMD_ */
    int wdt;              /* WDT_, with CMD_WDT */
    char target_name[72]; /* at most 64 bytes and a NUL */
    char source_name[72];
    char msg[512];        /* text ends with NUL; other content is carried as it is, zeros at its end being none of it */
} PACKET;
#define MSG_LEGHTN sizeof(PACKET)

/* client_socket connects to zhxd, waiting up to a second for it. It returns a descriptor, from which PACKETs are read and to which
 * they are written, each by one call with MSG_LEGHTN bytes; -1 with errno (ECONNREFUSED, EMFILE, ENOMEM ...): not connected. The
 * caller closes it. A read gives 0 when another process has registered the same name: this connection is over. */
#define client_socket zhx_client_socket /* a program that was compiled with another PACKET than this one does not link */
int client_socket(void);

/* transfer_msg sends content, at most 511 bytes and its NUL, from source_name to target_name. 1: it is on its way, and is delivered,
 * or told on standard error. -1: it is not (errno: EINVAL, a name is none; EMSGSIZE; EPIPE ...). It waits while 256 messages wait
 * for their receivers and the socket pair is full. */
int transfer_msg(int sock, const char *target_name, const char *source_name, const char *content);

/* register_wdt arms the watchdog of source_name, send_wdt feeds it. 1, or -1 with errno. Only the program feeds: the thread of sock.c
 * sends no feed of its own. */
int register_wdt(int sock, const char *source_name);
int send_wdt(int sock, const char *source_name);

/* get_other_process_pid is the least pid of a process whose name (15 bytes of it, as ps shows it) contains process_name; 0: none.
 * zhx_server is another name of zhxd here: its pid is known from the connection, and stays known for SERVER_GONE_S seconds after
 * the connection is lost, so that a loop "while zhx_server runs" outlives a restart of zhxd. */
#define SERVER_GONE_S 30
int get_other_process_pid(const char *process_name);

#ifdef __cplusplus
}
#endif
#endif
