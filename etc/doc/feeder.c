/*
 * A client of zhx with a feeder thread beside its main loop. It needs nothing of zhx: it speaks as sd_notify(3) does.
 *
 *     cc -std=c99 -pthread -o feeder feeder.c
 *
 *     [client.feeder]
 *     command   = ["/usr/bin/feeder"]       # or with a number: after so many rounds the main loop hangs, to try it
 *     ready     = "notify"
 *     deadlines = [{ from = "loop", to = "loop", within = "1s" }]
 *
 * A feeder thread alone proves nothing: it shows that the kernel still runs this thread, and it goes on feeding when the
 * main loop waits for a lock for ever. What has to be alive must say so itself. Here each round of the main loop is a
 * checkpoint, and zhx kills this program when there is more than 1 s from one checkpoint to the next, whatever the feeder
 * thread does. A feeder thread is of use in a program that has work which blocks for long and cannot feed meanwhile; the
 * checkpoints then stand around that work, as { from = "begin", to = "end", within = "30s" }.
 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { FEED_MS = 200, ROUND_MS = 100 }; /* a third of the timeout, or less */

static int sock = -1;           /* -1: nobody supervises us, and notify does nothing */
static struct sockaddr_un zhx;
static socklen_t zhx_len;

/* notify_open: $NOTIFY_SOCKET is a path, or begins with @, which stands for a NUL byte (abstract). */
static void notify_open(void)
{
	const char *path = getenv("NOTIFY_SOCKET");

	if (path == NULL || path[0] == '\0' || strlen(path) >= sizeof zhx.sun_path)
		return;
	zhx.sun_family = AF_UNIX;
	strcpy(zhx.sun_path, path);
	zhx_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
	if (path[0] == '@')
		zhx.sun_path[0] = '\0';
	sock = socket(AF_UNIX, SOCK_DGRAM, 0);
}

/* notify never blocks: what zhx cannot take now is lost, and the next one comes soon. Any thread may call it. */
static void notify(const char *text)
{
	if (sock >= 0)
		(void)sendto(sock, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&zhx, zhx_len);
}

static void rest(long ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&t, NULL);
}

/* feeder says that the process is alive, which it would also do if the main loop were dead. */
static void *feeder(void *unused)
{
	(void)unused;
	for (;;) {
		notify("WATCHDOG=1");
		rest(FEED_MS);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	long hang = argc > 1 ? atol(argv[1]) : -1, round;
	pthread_t thread;

	notify_open();
	if (pthread_create(&thread, NULL, feeder, NULL) != 0) {
		perror("pthread_create");
		return 1;
	}
	notify("READY=1");
	for (round = 0; round != hang; round++) {
		/* here is the work of one round */
		rest(ROUND_MS);
		notify("X_ZHX_CHECKPOINT=loop"); /* at the end of it: a round that was done, not one that was begun */
	}
	printf("the main loop hangs, the feeder thread feeds on\n");
	fflush(stdout);
	for (;;)
		pause();
}
