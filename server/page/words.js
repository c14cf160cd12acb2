// Every text of the page, in both languages. A text with a number has one form per plural of its language.

const EN = {
  "page.title": "yolov8-fla",
  "page.intro": "Find objects in your pictures",
  "nav.label": "This server",
  "nav.docs": "API",
  "nav.model": "Model",
  "nav.health": "Health",
  "nav.metrics": "Metrics",
  "language.switch": "中文",
  "language.label": "中文 (switch to Chinese)",
  "theme.toDark": "Dark colours",
  "theme.toLight": "Light colours",
  "skip": "Skip to the picture",

  "drop.title": "Drop pictures here, or paste them",
  "drop.hint": "JPEG, PNG, WebP, BMP or TIFF. They go to this server and nowhere else, and are not kept there.",
  "drop.now": "Let go to detect",
  "pick": "Choose pictures",
  "pick.more": "Add pictures",
  "camera": "Camera",
  "samples.title": "Or try one of these",
  "samples.label": "Try the sample {name}",
  "samples.failed": "The sample could not be loaded.",
  "drop.nothing": "There was no picture in what came.",

  "stage.label": "Picture. + and − zoom, 0 fits it, arrow keys move it.",
  "stage.picture": { one: "{name}: {n} object", other: "{name}: {n} objects" },
  "stage.plate": "This browser can't show the picture. The boxes stand on an empty plate of its size.",
  "stage.rendered": "This browser shows the picture as the server read it.",
  "zoom.in": "Zoom in",
  "zoom.out": "Zoom out",
  "zoom.fit": "Fit",
  "labels": "Labels",
  "strip.label": "Pictures",
  "strip.picture": { one: "{name}, {n} object", other: "{name}, {n} objects" },
  "strip.state": "{name}, {state}",
  "remove": "Remove this picture",
  "remove.all": "Remove all",
  "retry": "Try again",
  "retry.all": { one: "Try the failed one again", other: "Try the {n} failed ones again" },

  "state.waiting": "waiting",
  "state.sending": "detecting…",
  "state.retrying": { one: "the server is busy; again in {n} s", other: "the server is busy; again in {n} s" },
  "state.notReady": { one: "the server is not ready; again in {n} s", other: "the server is not ready; again in {n} s" },
  "state.key": "waits for the key",
  "state.failed": "failed",
  "progress": "{done} of {all} pictures",

  "thresholds.title": "Thresholds",
  "thresholds.hint": "Applied here, at once; nothing is sent again.",
  "thresholds.conf": "Confidence",
  "thresholds.confHint": "only scores above it",
  "thresholds.iou": "Overlap (IoU)",
  "thresholds.iouHint": "more than that, and the weaker box goes",
  "thresholds.maxDet": "Most boxes per picture",
  "thresholds.agnostic": "Classes suppress each other",
  "thresholds.reset": "Defaults",

  "found.title": "Found",
  "found.none": "Nothing at these thresholds.",
  "found.classes": "Classes shown",
  "found.inAll": { one: "{n} in the picture", other: "{n} in all {pictures} pictures" },
  "found.truncated": "There are more candidates above this confidence than the model hands out. The list may not be complete.",
  "found.table": "Detections, best score first",
  "found.class": "Class",
  "found.score": "Score",
  "found.place": "Place, px",
  "found.placeOf": "x {x}, y {y}, {w} × {h}",
  "found.announce": { one: "{n} object in {name}", other: "{n} objects in {name}" },

  "times.title": "Time",
  "times.decode": "Decode",
  "times.queue": "Queue",
  "times.inference": "Inference",
  "times.postprocess": "Postprocess",
  "times.rest": "Rest of the server",
  "times.network": "Network and browser",
  "times.total": "Server, total",
  "times.roundTrip": "Round trip",
  "times.ms": "{n} ms",

  "download.title": "Download",
  "download.scope": { one: "The picture, at these thresholds.", other: "All {n} pictures, at these thresholds." },
  "download.json": "JSON",
  "download.csv": "CSV",
  "download.yolo": "YOLO",
  "download.coco": "COCO",
  "download.picture": "Shown picture with boxes",
  "download.jpeg": "JPEG",
  "download.png": "PNG",
  "download.failed": "This browser could not draw a picture of that size. The API draws it: format=image.",

  "camera.title": "Camera",
  "camera.live": "Live",
  "camera.stop": "Stop",
  "camera.take": "Take a picture",
  "camera.name": "camera",
  "camera.insecure": "Browsers give the camera only to pages that come over HTTPS or from localhost. Open this page through one of these.",
  "camera.refused": "The browser refused the camera. Allow it for this page in the browser's settings, then try again.",
  "camera.missing": "There is no camera.",
  "camera.busy": "The camera could not be started; another program may be using it.",
  "camera.rate": "{n} pictures/s",

  "key.title": "This server asks for a key",
  "key.label": "API key",
  "key.send": "Use it",
  "key.hint": "Kept in this tab only, until it is closed.",
  "key.wrong": "The server did not accept this key.",

  "served.title": "What is served",
  "served.model": "Model",
  "served.version": "Version",
  "served.precision": "Precision",
  "served.provider": "Provider",
  "served.device": "Device",
  "served.reason": "Why this file",
  "served.classes": "Classes",
  "served.input": "Input",
  "served.certificate": "Certificate",
  "served.json": "Certificate as JSON",
  "served.server": "Server",
  "certificate.equal": { one: "Checked against its source: {n} detection compared, the same.", other: "Checked against its source: {n} detections compared, all the same." },
  "certificate.apart": "At most {px} px and {score} of score apart.",
  "certificate.within_gate": "Reduced precision, checked against its source: the accuracy it keeps is within the limit.",
  "certificate.loss_accepted": "Reduced precision. Its loss of accuracy is over the limit or was not measured, and whoever exported it accepted that.",
  "certificate.accuracy": "mAP50-95 {artifact}, its source {source}.",
  "certificate.created": "Made {date}.",

  "status.starting": "Loading the model…",
  "status.ready": "Ready",
  "status.stuck": "The model does not answer",
  "status.draining": "Shutting down",
  "status.failed": "Failed",
  "status.unreachable": "No connection",
  "status.asking": "Connecting…",
  "banner.gpu": "Running on the CPU, not on a GPU",

  "error.unreachable": "The server can't be reached. Is it running, and is the network there?",
  "error.unreadableAnswer": "What answered is not this server, or the answer was cut off.",
  "error.unsupported_image": "This is no picture of a kind that is read: JPEG, PNG, WebP, BMP or TIFF.",
  "error.undecodable_image": "The picture is damaged, cut off or empty.",
  "error.body_too_large": "The file has more bytes than the server takes.",
  "error.too_large": "The picture is larger than the server takes.",
  "error.too_many_pixels": "The picture has more pixels than the server takes.",
  "error.too_much_memory": "Decoding the picture needs more memory than the server has.",
  "error.too_many_images": "These are more pictures than the server takes at once.",
  "error.no_image": "No picture arrived.",
  "error.malformed_request": "The request arrived damaged.",
  "error.bad_input": "The server can't use what was sent.",
  "error.invalid_parameter": "The server does not know a setting that the page sent. Reload the page.",
  "error.unauthorized": "The server asks for a key.",
  "error.keys_not_configured": "This needs a key, and the server has none.",
  "error.not_found": "There is no such thing on this server.",
  "error.reload_failed": "The new model files can't be served; the old ones go on.",
  "error.unavailable": "The server can't take the picture now.",
  "error.queue_full": "The server is busy: too many pictures wait.",
  "error.uploads_full": "The server is busy: too many uploads.",
  "error.not_ready": "The server is not ready.",
  "error.draining": "The server is shutting down.",
  "error.too_many_connections": "The server has too many connections.",
  "error.request_timeout": "The picture arrived too slowly.",
  "error.deadline_exceeded": "It took the server too long.",
  "error.inference_failed": "The model failed on this picture. The server's log has the reason.",
  "error.internal_error": "The server failed. Its log has the reason.",
  "error.server_error": "The server failed.",
  "error.other": "The server answered with the error {status}.",
  "error.request": "Request {id}",
};

const ZH = {
  "page.title": "yolov8-fla",
  "page.intro": "在图片中检测目标",
  "nav.label": "本服务器",
  "nav.docs": "接口",
  "nav.model": "模型",
  "nav.health": "状态",
  "nav.metrics": "指标",
  "language.switch": "English",
  "language.label": "English（切换到英文）",
  "theme.toDark": "深色",
  "theme.toLight": "浅色",
  "skip": "跳到图片",

  "drop.title": "把图片拖到这里，或直接粘贴",
  "drop.hint": "支持 JPEG、PNG、WebP、BMP、TIFF。图片只发送到本服务器，不会保存。",
  "drop.now": "松开即开始检测",
  "pick": "选择图片",
  "pick.more": "添加图片",
  "camera": "摄像头",
  "samples.title": "或者试试这些示例",
  "samples.label": "试用示例 {name}",
  "samples.failed": "示例无法加载。",
  "drop.nothing": "其中没有图片。",

  "stage.label": "图片。+ 和 − 缩放，0 适应窗口，方向键移动。",
  "stage.picture": { other: "{name}：{n} 个目标" },
  "stage.plate": "浏览器无法显示这张图片，检测框画在同样大小的空白底板上。",
  "stage.rendered": "浏览器显示的是服务器读取到的图片。",
  "zoom.in": "放大",
  "zoom.out": "缩小",
  "zoom.fit": "适应",
  "labels": "标签",
  "strip.label": "图片列表",
  "strip.picture": { other: "{name}，{n} 个目标" },
  "strip.state": "{name}，{state}",
  "remove": "移除这张图片",
  "remove.all": "全部移除",
  "retry": "重试",
  "retry.all": { other: "重试 {n} 张失败的图片" },

  "state.waiting": "等待中",
  "state.sending": "检测中…",
  "state.retrying": { other: "服务器繁忙，{n} 秒后重试" },
  "state.notReady": { other: "服务器未就绪，{n} 秒后重试" },
  "state.key": "等待密钥",
  "state.failed": "失败",
  "progress": "{done} / {all} 张",

  "thresholds.title": "阈值",
  "thresholds.hint": "在浏览器中立即生效，不会重新发送图片。",
  "thresholds.conf": "置信度",
  "thresholds.confHint": "只保留高于此值的结果",
  "thresholds.iou": "重叠度 (IoU)",
  "thresholds.iouHint": "超过此值时去掉较弱的框",
  "thresholds.maxDet": "每张图片最多框数",
  "thresholds.agnostic": "不同类别之间也抑制",
  "thresholds.reset": "恢复默认",

  "found.title": "检测结果",
  "found.none": "当前阈值下没有目标。",
  "found.classes": "显示的类别",
  "found.inAll": { other: "全部 {pictures} 张图片共 {n} 个" },
  "found.truncated": "高于此置信度的候选框多于模型给出的数量，结果可能不完整。",
  "found.table": "检测结果，按分数从高到低",
  "found.class": "类别",
  "found.score": "分数",
  "found.place": "位置（像素）",
  "found.placeOf": "x {x}, y {y}, {w} × {h}",
  "found.announce": { other: "{name} 中有 {n} 个目标" },

  "times.title": "耗时",
  "times.decode": "解码",
  "times.queue": "排队",
  "times.inference": "推理",
  "times.postprocess": "后处理",
  "times.rest": "服务器其他",
  "times.network": "网络与浏览器",
  "times.total": "服务器总计",
  "times.roundTrip": "往返",
  "times.ms": "{n} 毫秒",

  "download.title": "下载",
  "download.scope": { other: "当前阈值下的全部 {n} 张图片。" },
  "download.json": "JSON",
  "download.csv": "CSV",
  "download.yolo": "YOLO",
  "download.coco": "COCO",
  "download.picture": "当前图片（带框）",
  "download.jpeg": "JPEG",
  "download.png": "PNG",
  "download.failed": "浏览器无法绘制这么大的图片。可以用接口绘制：format=image。",

  "camera.title": "摄像头",
  "camera.live": "实时",
  "camera.stop": "停止",
  "camera.take": "拍照",
  "camera.name": "摄像头",
  "camera.insecure": "浏览器只允许通过 HTTPS 或 localhost 打开的页面使用摄像头。请用这样的地址打开本页。",
  "camera.refused": "浏览器拒绝了摄像头。请在浏览器设置中允许本页使用，然后重试。",
  "camera.missing": "没有找到摄像头。",
  "camera.busy": "摄像头无法启动，可能正被其他程序使用。",
  "camera.rate": "{n} 张/秒",

  "key.title": "本服务器需要密钥",
  "key.label": "API 密钥",
  "key.send": "使用",
  "key.hint": "只保存在此标签页中，关闭后即清除。",
  "key.wrong": "服务器不接受这个密钥。",

  "served.title": "正在使用的模型",
  "served.model": "模型",
  "served.version": "版本",
  "served.precision": "精度",
  "served.provider": "执行后端",
  "served.device": "设备",
  "served.reason": "选择原因",
  "served.classes": "类别",
  "served.input": "输入",
  "served.certificate": "证书",
  "served.json": "证书 (JSON)",
  "served.server": "服务器",
  "certificate.equal": { other: "已与源模型比对：{n} 个检测结果全部一致。" },
  "certificate.apart": "最大差异 {px} 像素，分数 {score}。",
  "certificate.within_gate": "降低精度，已与源模型比对：准确率损失在限度以内。",
  "certificate.loss_accepted": "降低精度。准确率损失超出限度或未测量，导出者已接受。",
  "certificate.accuracy": "mAP50-95 {artifact}，源模型 {source}。",
  "certificate.created": "生成于 {date}。",

  "status.starting": "正在加载模型…",
  "status.ready": "就绪",
  "status.stuck": "模型没有响应",
  "status.draining": "正在关闭",
  "status.failed": "出错",
  "status.unreachable": "无法连接",
  "status.asking": "正在连接…",
  "banner.gpu": "正在用 CPU 运行，没有使用 GPU",

  "error.unreachable": "无法连接服务器。服务器在运行吗？网络正常吗？",
  "error.unreadableAnswer": "应答的不是本服务器，或应答不完整。",
  "error.unsupported_image": "这不是可读取的图片格式（JPEG、PNG、WebP、BMP、TIFF）。",
  "error.undecodable_image": "图片已损坏、不完整或为空。",
  "error.body_too_large": "文件字节数超过服务器的限制。",
  "error.too_large": "图片超过服务器的限制。",
  "error.too_many_pixels": "图片像素数超过服务器的限制。",
  "error.too_much_memory": "解码这张图片需要的内存超过服务器所有。",
  "error.too_many_images": "图片数量超过服务器一次的限制。",
  "error.no_image": "没有收到图片。",
  "error.malformed_request": "请求在途中损坏。",
  "error.bad_input": "服务器无法使用发送的内容。",
  "error.invalid_parameter": "服务器不认识本页发送的参数。请刷新页面。",
  "error.unauthorized": "服务器需要密钥。",
  "error.keys_not_configured": "此操作需要密钥，而服务器没有设置密钥。",
  "error.not_found": "服务器上没有这个内容。",
  "error.reload_failed": "新的模型文件无法使用，旧模型继续服务。",
  "error.unavailable": "服务器现在无法接收图片。",
  "error.queue_full": "服务器繁忙：排队的图片太多。",
  "error.uploads_full": "服务器繁忙：上传太多。",
  "error.not_ready": "服务器未就绪。",
  "error.draining": "服务器正在关闭。",
  "error.too_many_connections": "服务器的连接太多。",
  "error.request_timeout": "图片到达得太慢。",
  "error.deadline_exceeded": "服务器处理时间过长。",
  "error.inference_failed": "模型处理这张图片时出错，原因见服务器日志。",
  "error.internal_error": "服务器出错，原因见日志。",
  "error.server_error": "服务器出错。",
  "error.other": "服务器返回错误 {status}。",
  "error.request": "请求 {id}",
};

export const WORDS = { en: EN, zh: ZH };
const TAGS = { en: "en", zh: "zh-CN" };

let language = "en";

/** The language of the texts: "en" or "zh". */
export function currentLanguage() {
  return language;
}

/** The first of a browser's languages that the page has; English otherwise. */
export function preferredLanguage(languages) {
  const found = languages.map((each) => each.toLowerCase().split("-")[0]).find((each) => each in WORDS);
  return found ?? "en";
}

/** Takes a language for all texts to come, and writes the texts of index.html in it. */
export function speak(chosen) {
  language = chosen;
  document.documentElement.lang = TAGS[language];
  document.title = words("page.title");
  for (const node of document.querySelectorAll("[data-words]")) node.textContent = words(node.dataset.words);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", words(node.dataset.label));
  for (const node of document.querySelectorAll("[data-tip]")) node.title = words(node.dataset.tip);
}

/** A text; `values` fill its braces, and `values.n` chooses its plural. */
export function words(key, values = {}) {
  let text = WORDS[language][key];
  if (text === undefined) throw new Error(`no words for ${key}`);
  if (typeof text === "object") text = text[new Intl.PluralRules(TAGS[language]).select(values.n)] ?? text.other;
  return text.replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    return typeof value === "number" ? number(value) : value;
  });
}

/** Whether there is a text. */
export function hasWords(key) {
  return key in WORDS[language];
}

/** A number as the language writes it. */
export function number(value, decimals) {
  const digits = decimals === undefined ? {} : { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
  return new Intl.NumberFormat(TAGS[language], digits).format(value);
}
