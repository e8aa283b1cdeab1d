/** Set by vite.config.ts from the installed package. */
declare const __ORT_VERSION__: string;
