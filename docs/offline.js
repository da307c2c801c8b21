/* The search runs in a worker, which browsers refuse to a page that is opened from a folder.
   There it runs in a hidden frame instead. */
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.documentElement.append(this.frame);
      const inside = this.frame.contentWindow;
      // As with a worker, what is sent is a copy and arrives later.
      inside.postMessage = (data) => setTimeout(() => this.onmessage?.({ data }));
      const script = inside.document.createElement("script");
      this.ready = new Promise((loaded) => (script.onload = loaded));
      script.src = new URL(url, location.href).href;
      inside.document.head.append(script);
    }
    async postMessage(data) {
      const copy = structuredClone(data);
      await this.ready;
      const inside = this.frame.contentWindow;
      inside?.dispatchEvent(new inside.MessageEvent("message", { data: copy }));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
