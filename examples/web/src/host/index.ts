/** The host library: a bundle in a browser, from its manifest alone. README.md shows how to use it. */

export * from "./bundle";
export * from "./errors";
export * from "./events";
export * from "./files";
export * from "./golden";
export * from "./grammar";
export * from "./host";
export type * from "./manifest";
export * from "./memory";
export * from "./midi";
export { ORT_VERSION } from "./onnxruntime";
export * from "./pcg64";
export * from "./performance";
export * from "./performer";
export * from "./sampling";
export * from "./saved_state";
export * from "./stream";
export * from "./tracks";
